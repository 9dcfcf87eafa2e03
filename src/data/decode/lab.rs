//! L\*a\*b\* of 8 bits to sRGB, to the bytes that Pillow's `convert("RGB")` gives: those of LittleCMS from its L\*a\*b\*
//! profile of D50 to its sRGB, by the perceptual intent. All 2²⁴ values are Pillow's.
//!
//! LittleCMS computes the colours of 33 levels of each L, a and b, and mixes four of them in between. In one byte of nine
//! that is not the colour itself, by up to 55 levels where colours leave sRGB; so the same is done here, with its rounding.

use std::sync::LazyLock;

/// Levels of L, a and b whose colours are computed.
const LEVELS: usize = 33;

/// From a colour to that of the next L, a and b.
const STEPS: [usize; 3] = [LEVELS * LEVELS, LEVELS, 1];

/// [L, a, b, 3], 16 bits of R, G, B.
static COLOURS: LazyLock<Vec<[u16; 3]>> = LazyLock::new(|| {
    // Of 16 bits, as all numbers that the colours are computed from.
    let level = |i: usize| f64::from(((i * 65535 + 16) / (LEVELS - 1)) as f32 / 65535.0);
    let levels = || (0..LEVELS).map(level);
    let mut colours = Vec::with_capacity(LEVELS.pow(3));
    for l in levels() {
        for a in levels() {
            colours.extend(levels().map(|b| colour(100.0 * l, 255.0 * a - 128.0, 255.0 * b - 128.0)));
        }
    }
    colours
});

/// The white of D50 in XYZ.
const D50: [f64; 3] = [0.9642, 1.0, 0.8249];

/// XYZ of D50 to linear sRGB, adapted to its D65 as Bradford says.
const XYZ_TO_RGB: [[f64; 3]; 3] = [
    [3.134186364236819, -1.6172089589982752, -0.49069406400638405],
    [-0.9787485041906941, 1.9161300967735873, 0.03343339915999557],
    [0.07196392780224675, -0.22899387345320327, 1.4057537328964445],
];

/// The largest number of ICC's XYZ, which is the 1 of LittleCMS.
const LARGEST_XYZ: f64 = 1.0 + 32767.0 / 32768.0;

/// 16 bits of R, G, B.
fn colour(l: f64, a: f64, b: f64) -> [u16; 3] {
    // LittleCMS holds XYZ, linear and final RGB in f32 each.
    let f32 = |value: f64| f64::from(value as f32);
    let y = (l + 16.0) / 116.0;
    let mut xyz = [y + 0.002 * a, y, y - 0.005 * b];
    for (value, white) in xyz.iter_mut().zip(D50) {
        let t = *value;
        let share = if t <= 24.0 / 116.0 { 108.0 / 841.0 * (t - 16.0 / 116.0) } else { t * t * t };
        *value = f32(share * white / LARGEST_XYZ);
    }
    XYZ_TO_RGB.map(|row| {
        let linear = f32(row.iter().zip(xyz).map(|(factor, value)| factor * LARGEST_XYZ * value).sum());
        let dark = ((0.04045 + 0.055) / 1.055f64).powf(2.4);
        let value = if linear < dark { 12.92 * linear } else { 1.055 * linear.powf(1.0 / 2.4) - 0.055 };
        // What is out of sRGB is clipped, as the cast does.
        (f32(value) * 65535.0 + 0.5) as u16
    })
}

/// One colour; a and b with 128 added.
pub(super) fn to_rgb(lab: [u8; 3]) -> [u8; 3] {
    let mut at = 0;
    // What is left of L, a and b from the level below, in 65536ths of the way to the next.
    let mut rests = [(0, 0); 3];
    for ((value, step), rest) in lab.into_iter().zip(STEPS).zip(&mut rests) {
        let place = u32::from(value) * 257 * (LEVELS - 1) as u32;
        let place = place + (place + 0x7fff) / 0xffff;
        at += (place >> 16) as usize * step;
        *rest = (place & 0xffff, step);
    }
    // The way to the colour: the largest rest first.
    rests.sort_by_key(|&(rest, _)| std::cmp::Reverse(rest));
    let start = COLOURS[at];
    let mut sums = [0x8001; 3];
    let mut before = start;
    for (rest, step) in rests.into_iter().filter(|&(rest, _)| rest > 0) {
        at += step;
        let next = COLOURS[at];
        for ((sum, next), before) in sums.iter_mut().zip(next).zip(before) {
            *sum += (i64::from(next) - i64::from(before)) * i64::from(rest);
        }
        before = next;
    }
    let mut rgb = [0; 3];
    for ((rgb, sum), start) in rgb.iter_mut().zip(sums).zip(start) {
        let value = i64::from(start) + ((sum + (sum >> 16)) >> 16);
        *rgb = ((value * 65281 + (1 << 23)) >> 24) as u8;
    }
    rgb
}
