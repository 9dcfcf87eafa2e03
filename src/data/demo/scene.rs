//! The whole picture: a background, one flower or several, stems and leaves, light, and the camera.

use std::f32::consts::{PI, TAU};

use rand::{Rng, RngExt};

use super::IMAGE_SIZE;
use super::canvas::{Canvas, Rgb, between, mix, noise, scale, smooth_step};
use super::flower::{Flower, Pose};
use super::kind::FlowerKind;

/// Which of two worlds a picture is from. The bundled model learned in the [`World::Studio`]; the demo's
/// photos come from the [`World::Field`], where light, surroundings and camera are different and worse, so
/// that fine-tuning has something to gain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum World {
    /// Good light, flowers large and facing the viewer, plain surroundings.
    Studio,
    /// Low evening light that turns every colour towards its warmer neighbour, flowers smaller, turned away,
    /// crowded or partly hidden, busy surroundings, a noisy camera.
    Field,
}

/// The ranges that make up a world; angles in radians, lengths in shares of the picture's side.
struct Ranges {
    backgrounds: &'static [Background],
    radius: [f32; 2],
    offset: f32,
    tilt: [f32; 2],
    companions: f64,
    occlusion: f64,
    brightness: [f32; 2],
    /// Colour of the light: above 0 red gains what blue loses, below 0 the reverse.
    warmth: [f32; 2],
    /// Green in the light: above 0 green gains, below 0 it loses.
    tint: [f32; 2],
    contrast: [f32; 2],
    shade: [f32; 2],
    blur: [f32; 2],
    noise: [f32; 2],
}

const STUDIO: Ranges = Ranges {
    backgrounds: &[Background::Paper, Background::Grass, Background::Sky, Background::Soil],
    radius: [0.30, 0.46],
    offset: 0.10,
    tilt: [0.0, 0.70],
    companions: 0.12,
    occlusion: 0.05,
    brightness: [0.85, 1.12],
    warmth: [-0.06, 0.06],
    tint: [-0.03, 0.03],
    contrast: [0.9, 1.1],
    shade: [0.0, 0.25],
    blur: [0.0, 0.5],
    noise: [0.0, 0.03],
};

const FIELD: Ranges = Ranges {
    backgrounds: &[Background::Bokeh, Background::Foliage, Background::Dusk, Background::Stone],
    radius: [0.28, 0.42],
    offset: 0.12,
    tilt: [0.10, 0.80],
    companions: 0.30,
    occlusion: 0.25,
    brightness: [0.65, 0.95],
    warmth: [0.22, 0.36],
    tint: [-0.05, 0.05],
    contrast: [0.75, 1.0],
    shade: [0.1, 0.4],
    blur: [0.2, 0.7],
    noise: [0.01, 0.045],
};

impl World {
    fn ranges(self) -> &'static Ranges {
        match self {
            Self::Studio => &STUDIO,
            Self::Field => &FIELD,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Background {
    Paper,
    Grass,
    Sky,
    Soil,
    Bokeh,
    Foliage,
    Dusk,
    Stone,
}

/// Draws one flower of `kind`: RGB bytes, [size, size, 3]. The same generator state gives the same picture.
pub fn draw<R: Rng + ?Sized>(kind: &FlowerKind, world: World, rng: &mut R, size: usize) -> Vec<u8> {
    let ranges = world.ranges();
    let mut canvas = Canvas::new(size);
    let background = ranges.backgrounds[rng.random_range(0..ranges.backgrounds.len())];
    background.paint(&mut canvas, rng);
    let light = between(rng, [-PI, 0.0]);
    if rng.random_bool(ranges.companions) {
        for _ in 0..rng.random_range(1..3) {
            let pose = companion_pose(ranges, light, rng);
            paint_plant(*kind, pose, &mut canvas, rng);
        }
    }
    let pose = main_pose(ranges, light, rng);
    paint_plant(*kind, pose, &mut canvas, rng);
    if rng.random_bool(ranges.occlusion) {
        paint_blade_across(&pose, &mut canvas, rng);
    }
    photograph(&canvas, ranges, light, rng)
}

fn main_pose<R: Rng + ?Sized>(ranges: &Ranges, light: f32, rng: &mut R) -> Pose {
    let offset = [-ranges.offset, ranges.offset];
    Pose {
        centre: [0.5 + between(rng, offset), 0.47 + between(rng, offset)],
        radius: between(rng, ranges.radius),
        rotation: between(rng, [0.0, TAU]),
        tilt_axis: between(rng, [0.0, PI]),
        tilt_cosine: between(rng, ranges.tilt).cos(),
        light,
    }
}

/// A smaller flower towards the picture's edge.
fn companion_pose<R: Rng + ?Sized>(ranges: &Ranges, light: f32, rng: &mut R) -> Pose {
    let main = main_pose(ranges, light, rng);
    let angle = between(rng, [0.0, TAU]);
    let away = between(rng, [0.36, 0.52]);
    Pose {
        centre: [0.5 + away * angle.cos(), 0.5 + away * angle.sin()],
        radius: main.radius * between(rng, [0.4, 0.65]),
        ..main
    }
}

fn leaf_green<R: Rng + ?Sized>(rng: &mut R) -> Rgb {
    let green = between(rng, [0.36, 0.58]);
    [green * between(rng, [0.45, 0.75]), green, green * between(rng, [0.25, 0.45])]
}

/// Stem, leaves, then the flower over them.
fn paint_plant<R: Rng + ?Sized>(kind: FlowerKind, pose: Pose, canvas: &mut Canvas, rng: &mut R) {
    let green = leaf_green(rng);
    let [x, y] = pose.centre;
    let foot = [x + between(rng, [-0.15, 0.15]), 1.1];
    let bend = [x + between(rng, [-0.12, 0.12]), (y + 1.1) / 2.0];
    let width = pose.radius * 0.07;
    canvas.stroke([[x, y], bend, foot], [width, width * 1.3], green);
    for side in [-1.0f32, 1.0] {
        if rng.random_bool(0.6) {
            let base = [(bend[0] + x) / 2.0, between(rng, [0.55, 0.85]).max(y + 0.5 * pose.radius)];
            let angle = -PI / 2.0 + side * between(rng, [0.6, 1.5]);
            let length = pose.radius * between(rng, [0.7, 1.2]);
            canvas.leaf(base, angle, length, length * between(rng, [0.16, 0.26]), leaf_green(rng));
        }
    }
    Flower::grow(kind, pose, rng).paint(canvas);
}

/// A blade of grass in front of the flower, past its centre.
fn paint_blade_across<R: Rng + ?Sized>(pose: &Pose, canvas: &mut Canvas, rng: &mut R) {
    let side = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
    let x = pose.centre[0] + side * pose.radius * between(rng, [0.25, 0.8]);
    let top = [x + side * between(rng, [0.0, 0.2]), pose.centre[1] - pose.radius * between(rng, [0.2, 1.0])];
    let points = [[x + between(rng, [-0.1, 0.1]), 1.05], [x, 0.7], top];
    canvas.stroke(points, [between(rng, [0.015, 0.035]), 0.004], leaf_green(rng));
}

/// Light and camera: exposure, colour cast, contrast, a shade across the picture, blur and noise.
fn photograph<R: Rng + ?Sized>(canvas: &Canvas, ranges: &Ranges, light: f32, rng: &mut R) -> Vec<u8> {
    let mut picture = canvas.pixels();
    let brightness = between(rng, ranges.brightness);
    let (warmth, tint) = (between(rng, ranges.warmth), between(rng, ranges.tint));
    let cast = [1.0 + warmth, 1.0 + tint, 1.0 - warmth];
    let contrast = between(rng, ranges.contrast);
    let shade = between(rng, ranges.shade);
    let (light_y, light_x) = light.sin_cos();
    picture.recolour(|x, y, colour| {
        let towards = (x - 0.5) * light_x + (y - 0.5) * light_y;
        let gain = brightness * (1.0 + shade * 1.4 * towards);
        std::array::from_fn(|channel| (colour[channel] * gain * cast[channel] - 0.45) * contrast + 0.45)
    });
    // Both ranges are meant for pixels of a picture of IMAGE_SIZE. Blur reaches equally far on any grid;
    // noise is as strong over any area.
    let finer = picture.size() as f32 / IMAGE_SIZE as f32;
    picture.blur(between(rng, ranges.blur) * finer);
    picture.add_noise(between(rng, ranges.noise) * finer, rng);
    picture.into_bytes()
}

impl Background {
    fn paint<R: Rng + ?Sized>(self, canvas: &mut Canvas, rng: &mut R) {
        match self {
            Self::Paper => paint_paper(canvas, rng),
            Self::Grass => paint_grass(canvas, rng),
            Self::Sky => paint_sky(canvas, rng),
            Self::Soil => paint_soil(canvas, rng),
            Self::Bokeh => paint_bokeh(canvas, rng),
            Self::Foliage => paint_foliage(canvas, rng),
            Self::Dusk => paint_dusk(canvas, rng),
            Self::Stone => paint_stone(canvas, rng),
        }
    }
}

/// A pale backdrop, lit from one corner.
fn paint_paper<R: Rng + ?Sized>(canvas: &mut Canvas, rng: &mut R) {
    let pale: Rgb = std::array::from_fn(|_| between(rng, [0.55, 0.95]));
    let corner = [rng.random::<f32>(), rng.random::<f32>()];
    canvas.paint_all(|x, y| {
        let distance = ((x - corner[0]).powi(2) + (y - corner[1]).powi(2)).sqrt();
        scale(pale, 1.05 - 0.25 * distance)
    });
}

fn paint_grass<R: Rng + ?Sized>(canvas: &mut Canvas, rng: &mut R) {
    let ground = leaf_green(rng);
    canvas.paint_all(|_, y| scale(ground, 0.55 + 0.3 * y));
    for _ in 0..55 {
        let x = between(rng, [-0.1, 1.1]);
        let foot = between(rng, [0.3, 1.3]);
        let lean = between(rng, [-0.18, 0.18]);
        let height = between(rng, [0.25, 0.55]);
        let points = [[x, foot], [x + lean * 0.2, foot - height * 0.6], [x + lean, foot - height]];
        let colour = scale(leaf_green(rng), between(rng, [0.7, 1.25]));
        canvas.stroke(points, [between(rng, [0.008, 0.018]), 0.002], colour);
    }
}

fn paint_sky<R: Rng + ?Sized>(canvas: &mut Canvas, rng: &mut R) {
    let (seed, shift) = (rng.next_u32(), between(rng, [0.0, 9.0]));
    let zenith = mix([0.30, 0.55, 0.90], [0.50, 0.72, 0.95], rng.random());
    let clouds = between(rng, [0.3, 0.9]);
    canvas.paint_all(|x, y| {
        let sky = mix(zenith, [0.82, 0.90, 0.97], y);
        let cloud = 0.65 * noise(x * 3.0 + shift, y * 5.0, seed) + 0.35 * noise(x * 8.0, y * 12.0, seed);
        mix(sky, [0.98, 0.98, 0.98], clouds * smooth_step(0.5, 0.8, cloud))
    });
}

fn paint_soil<R: Rng + ?Sized>(canvas: &mut Canvas, rng: &mut R) {
    let seed = rng.next_u32();
    let brown = mix([0.42, 0.29, 0.18], [0.30, 0.20, 0.13], rng.random());
    canvas.paint_all(|x, y| {
        let clods = noise(x * 9.0, y * 9.0, seed);
        let grains = noise(x * 34.0, y * 34.0, seed ^ 1);
        scale(brown, 0.55 + 0.55 * clods + 0.35 * grains)
    });
}

/// Lights out of focus over a dark hedge.
fn paint_bokeh<R: Rng + ?Sized>(canvas: &mut Canvas, rng: &mut R) {
    let dark = scale(leaf_green(rng), between(rng, [0.35, 0.75]));
    let far = mix(dark, [0.75, 0.70, 0.45], between(rng, [0.1, 0.5]));
    canvas.paint_all(|x, y| mix(far, dark, (0.3 * x + 0.8 * y).min(1.0)));
    for _ in 0..rng.random_range(8..20) {
        let colour: Rgb = [between(rng, [0.5, 1.0]), between(rng, [0.6, 1.0]), between(rng, [0.25, 0.8])];
        let (x, y, radius) = (rng.random(), rng.random(), between(rng, [0.04, 0.15]));
        canvas.disc(x, y, radius, 0.25, colour, between(rng, [0.12, 0.45]));
    }
}

fn paint_foliage<R: Rng + ?Sized>(canvas: &mut Canvas, rng: &mut R) {
    let ground = scale(leaf_green(rng), 0.35);
    canvas.paint_all(|_, _| ground);
    for layer in 0..34 {
        let base = [between(rng, [-0.2, 1.1]), between(rng, [-0.2, 1.1])];
        let length = between(rng, [0.25, 0.5]);
        let colour = scale(leaf_green(rng), 0.45 + 0.02 * layer as f32);
        canvas.leaf(base, between(rng, [0.0, TAU]), length, length * between(rng, [0.18, 0.32]), colour);
    }
}

/// Evening sky over a dark ridge.
fn paint_dusk<R: Rng + ?Sized>(canvas: &mut Canvas, rng: &mut R) {
    let seed = rng.next_u32();
    let high = mix([0.20, 0.16, 0.40], [0.45, 0.25, 0.45], rng.random());
    let low = mix([0.95, 0.55, 0.30], [0.90, 0.70, 0.45], rng.random());
    let horizon = between(rng, [0.6, 0.85]);
    canvas.paint_all(|x, y| {
        let ridge = horizon + 0.12 * (noise(x * 4.0, 0.5, seed) - 0.5) + 0.03 * noise(x * 22.0, 0.5, seed);
        let sky = mix(high, low, (y / horizon).clamp(0.0, 1.0).powf(1.4));
        if y > ridge { scale([0.13, 0.14, 0.12], 1.0 + noise(x * 30.0, y * 30.0, seed)) } else { sky }
    });
}

/// Paving: grey slabs with dark joints.
fn paint_stone<R: Rng + ?Sized>(canvas: &mut Canvas, rng: &mut R) {
    let seed = rng.next_u32();
    let (height, shift) = (between(rng, [0.22, 0.38]), rng.random::<f32>());
    let grey: Rgb = std::array::from_fn(|_| between(rng, [0.45, 0.62]));
    canvas.paint_all(|x, y| {
        let row = ((y + shift) / height).floor();
        let column_x = x / (height * 1.6) + row * 0.47 + shift;
        let slab = noise(row * 7.3 + 0.5, column_x.floor() * 3.1 + 0.5, seed);
        let grain = noise(x * 28.0, y * 28.0, seed ^ 2);
        let inside = |cell: f32, joint: f32| (cell - cell.floor()).min(1.0 - (cell - cell.floor())) > joint;
        let gain = if inside((y + shift) / height, 0.05) && inside(column_x, 0.035) { 1.0 } else { 0.45 };
        scale(grey, gain * (0.7 + 0.4 * slab + 0.25 * grain))
    });
}
