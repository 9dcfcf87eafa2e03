//! One flower: petals placed around a centre, seen at an angle, and the colour at each point of it.

use std::f32::consts::{PI, TAU};

use rand::Rng;

use super::canvas::{Canvas, Rgb, between, mix, noise, scale, smooth_step};
use super::kind::{Centre, Colour, FlowerForm, FlowerKind, Marking, Rings};

/// Where a flower is and how it faces. Lengths are shares of the picture's side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pose {
    pub centre: [f32; 2],
    pub radius: f32,
    /// Turn within the flower's own plane, radians.
    pub rotation: f32,
    /// Direction of the axis it is tilted about, radians.
    pub tilt_axis: f32,
    /// Cosine of the tilt: 1 faces the viewer.
    pub tilt_cosine: f32,
    /// Direction the light comes from, radians.
    pub light: f32,
}

/// One petal in the plane of its flower, whose radius is 1.
struct Petal {
    sin: f32,
    cos: f32,
    length: f32,
    half_width: f32,
    tint: f32,
    ruffle_phase: f32,
    /// Radius under which a ring above throws its shadow; 0 for the top ring.
    shadow: f32,
}

/// A flower ready to be painted.
pub(crate) struct Flower {
    kind: FlowerKind,
    pose: Pose,
    /// Direction of the light in the flower's plane.
    local_light: (f32, f32),
    /// From the topmost down.
    petals: Vec<Petal>,
    petal_colour: Rgb,
    second_colour: Rgb,
    throat_colour: Rgb,
    centre_colour: Rgb,
    centre_radius: f32,
    texture: u32,
}

fn petal_colour(colour: Colour) -> Rgb {
    match colour {
        Colour::Red => [0.82, 0.09, 0.10],
        Colour::Orange => [0.96, 0.50, 0.08],
        Colour::Yellow => [0.97, 0.85, 0.14],
        Colour::White => [0.94, 0.94, 0.91],
        Colour::Pink => [0.97, 0.62, 0.73],
        Colour::Magenta => [0.80, 0.11, 0.52],
        Colour::Violet => [0.50, 0.26, 0.76],
        Colour::Blue => [0.24, 0.40, 0.88],
    }
}

fn centre_colour(centre: Centre) -> Rgb {
    match centre {
        Centre::Yellow => [0.96, 0.80, 0.12],
        Centre::Green => [0.45, 0.66, 0.20],
        Centre::Brown => [0.34, 0.18, 0.08],
        Centre::White => [0.95, 0.95, 0.90],
    }
}

/// Shifts every channel by up to `amount`.
fn jitter<R: Rng + ?Sized>(colour: Rgb, amount: f32, rng: &mut R) -> Rgb {
    colour.map(|channel| (channel + between(rng, [-amount, amount])).clamp(0.0, 1.0))
}

/// Half-width of a petal at `u` (0 at the base, 1 at the tip), as a share of its largest half-width.
fn outline(form: FlowerForm, u: f32) -> f32 {
    let ellipse = |middle: f32, reach: f32| (1.0 - ((u - middle) / reach).powi(2)).max(0.0).sqrt();
    let base = |until: f32| (0.25 + 0.75 * (u / until).min(1.0)).powf(0.8);
    match form {
        FlowerForm::Rosette | FlowerForm::Heart | FlowerForm::Ruffle => {
            if u < 0.62 {
                base(0.62)
            } else {
                ellipse(0.62, 0.38)
            }
        }
        FlowerForm::Star => {
            let shoulder = 0.36;
            if u < shoulder { base(shoulder) } else { 1.0 - ((u - shoulder) / (1.0 - shoulder)).powf(1.15) }
        }
        FlowerForm::Daisy => {
            if u < 0.80 {
                base(0.5)
            } else {
                ellipse(0.80, 0.20)
            }
        }
        FlowerForm::Pinwheel => {
            if u < 0.66 {
                base(0.66)
            } else {
                ellipse(0.66, 0.34)
            }
        }
    }
}

/// Largest half-width of a petal, in flower radii, for `count` petals in a ring.
fn half_width(form: FlowerForm, count: usize) -> f32 {
    let share = (PI / count as f32).tan();
    match form {
        FlowerForm::Rosette | FlowerForm::Heart => 0.68 * share.min(0.62),
        FlowerForm::Ruffle => 0.80 * share.min(0.64),
        FlowerForm::Star => 0.48 * share.min(0.62),
        FlowerForm::Daisy => 0.44 * share,
        FlowerForm::Pinwheel => 0.60 * share.min(0.60),
    }
}

impl Petal {
    /// Position within the petal: `u` along it and `v` across it in half-widths, or `None` outside it.
    fn locate(&self, form: FlowerForm, x: f32, y: f32) -> Option<(f32, f32)> {
        let mut u = (x * self.cos + y * self.sin) / self.length;
        if !(0.0..1.15).contains(&u) {
            return None;
        }
        let mut across = y * self.cos - x * self.sin;
        if form == FlowerForm::Pinwheel {
            across -= 0.34 * self.length * u * u - 0.08;
        }
        let mut v = across / self.half_width;
        // Outside whatever the outline is, which is 1 at the most: neither it nor the ruffle takes long for nothing.
        if v.abs() >= if form == FlowerForm::Ruffle { 1.2 } else { 1.0 } {
            return None;
        }
        if form == FlowerForm::Ruffle {
            // The rim moves in and out with the angle seen from the middle of the petal.
            let angle = v.atan2((u - 0.55) * 2.0);
            let stretch = 1.0 + 0.10 * (7.0 * angle + self.ruffle_phase).sin();
            u = 0.55 + (u - 0.55) / stretch;
            v /= stretch;
        }
        let tip = if form == FlowerForm::Heart { 1.0 - 0.30 * (1.0 - v.abs() / 0.52).max(0.0) } else { 1.0 };
        if !(0.0..tip).contains(&u) {
            return None;
        }
        let edge = outline(form, u);
        // Within the notch the rim is the notch's side, not the outline's.
        let rim = if form == FlowerForm::Heart && u > 0.62 {
            (v.abs() / edge).max(1.0 - (tip - u) * 2.2)
        } else {
            v.abs() / edge
        };
        (rim < 1.0).then_some((u, rim.copysign(v)))
    }
}

impl Flower {
    /// Grows a flower: petals differ a little in length, width, place and tint.
    pub fn grow<R: Rng + ?Sized>(kind: FlowerKind, pose: Pose, rng: &mut R) -> Self {
        let count = kind.petals.count();
        let rings: &[(f32, f32)] = match kind.rings {
            Rings::Single => &[(1.0, 0.0)],
            Rings::Double => &[(0.60, 0.0), (1.0, 0.62)],
        };
        let mut petals = Vec::with_capacity(count * rings.len());
        for (ring, &(length, shadow)) in rings.iter().enumerate() {
            for index in 0..count {
                let place = index as f32 + ring as f32 * 0.5 + between(rng, [-0.09, 0.09]);
                let (sin, cos) = (TAU * place / count as f32).sin_cos();
                let length = length * between(rng, [0.92, 1.0]);
                let half_width = half_width(kind.form, count) * length * between(rng, [0.92, 1.08]);
                let tint = between(rng, [-0.06, 0.06]);
                let ruffle_phase = between(rng, [0.0, TAU]);
                petals.push(Petal { sin, cos, length, half_width, tint, ruffle_phase, shadow });
            }
        }
        let petal_colour = jitter(petal_colour(kind.colour), 0.05, rng);
        let white = jitter([0.95, 0.95, 0.93], 0.03, rng);
        let centre_radius =
            between(rng, if kind.form == FlowerForm::Daisy { [0.22, 0.32] } else { [0.16, 0.25] });
        let turned = pose.light - pose.rotation;
        Self {
            kind,
            pose,
            local_light: (turned.cos(), turned.sin()),
            petals,
            petal_colour,
            second_colour: white,
            throat_colour: jitter([0.22, 0.05, 0.10], 0.04, rng),
            centre_colour: jitter(centre_colour(kind.centre), 0.05, rng),
            centre_radius,
            texture: rng.next_u32(),
        }
    }

    /// Paints the flower with a soft shadow behind it.
    pub(crate) fn paint(&self, canvas: &mut Canvas) {
        let Pose { centre: [x, y], radius, light, .. } = self.pose;
        let (fall_x, fall_y) = (-light.cos() * 0.10 * radius, -light.sin() * 0.10 * radius);
        canvas.disc(x + fall_x, y + fall_y, radius * 1.05, 0.75, [0.04, 0.06, 0.03], 0.45);
        let to_plane = self.to_plane();
        canvas.paint_around(x, y, radius * 1.02, |px, py| {
            let (local_x, local_y) = to_plane(px, py);
            self.colour_at(local_x, local_y).map(|colour| (colour, 1.0))
        });
    }

    /// From the picture into the flower's plane, in radii: undoes the tilt, then the rotation.
    fn to_plane(&self) -> impl Fn(f32, f32) -> (f32, f32) {
        let pose = self.pose;
        let (tilt_sin, tilt_cos) = pose.tilt_axis.sin_cos();
        let (sin, cos) = (pose.rotation - pose.tilt_axis).sin_cos();
        move |x, y| {
            let (dx, dy) = ((x - pose.centre[0]) / pose.radius, (y - pose.centre[1]) / pose.radius);
            let (along, across) =
                (dx * tilt_cos + dy * tilt_sin, (dy * tilt_cos - dx * tilt_sin) / pose.tilt_cosine);
            (along * cos + across * sin, across * cos - along * sin)
        }
    }

    fn colour_at(&self, x: f32, y: f32) -> Option<Rgb> {
        let distance = (x * x + y * y).sqrt();
        if distance > 1.1 {
            return None;
        }
        if distance < self.centre_radius {
            return Some(self.centre_at(x, y, distance / self.centre_radius));
        }
        self.petals.iter().find_map(|petal| {
            let (u, v) = petal.locate(self.kind.form, x, y)?;
            Some(self.petal_at(petal, u, v, distance))
        })
    }

    /// The centre: a dome covered with dots, darker to its rim.
    fn centre_at(&self, x: f32, y: f32, reach: f32) -> Rgb {
        let dots = noise(x * 26.0, y * 26.0, self.texture) - 0.5;
        let lit = (x * self.local_light.0 + y * self.local_light.1) / self.centre_radius;
        scale(self.centre_colour, 1.02 + 0.45 * dots + 0.14 * lit - 0.34 * reach.powi(4))
    }

    /// A petal's colour at (u, v), `distance` from the flower's middle.
    fn petal_at(&self, petal: &Petal, u: f32, v: f32, distance: f32) -> Rgb {
        let rim = v.abs();
        let colour = match self.kind.marking {
            Marking::Plain => self.petal_colour,
            Marking::WhiteEdged => {
                let outer = rim.max(smooth_step(0.70, 1.0, u));
                mix(self.petal_colour, self.second_colour, smooth_step(0.58, 0.72, outer))
            }
            Marking::WhiteStriped => {
                let stripe = 1.0 - smooth_step(0.20, 0.34, rim);
                mix(self.petal_colour, self.second_colour, stripe * (1.0 - smooth_step(0.80, 0.95, u)))
            }
            Marking::DarkThroated => mix(self.throat_colour, self.petal_colour, smooth_step(0.36, 0.62, u)),
        };
        let (light_x, light_y) = self.local_light;
        // The petal is a shallow trough: the side facing the light is brighter.
        let side = v * (light_y * petal.cos - light_x * petal.sin);
        let facing = light_x * petal.cos + light_y * petal.sin;
        let veins = 0.035 * (v * 14.0).sin() * (1.0 - u);
        let depth = 0.80 + 0.24 * smooth_step(0.05, 0.6, u);
        let outline = 0.24 * smooth_step(0.86, 1.0, rim);
        let shadow = 0.30 * (1.0 - smooth_step(0.85 * petal.shadow, 1.12 * petal.shadow.max(1e-3), distance));
        let shadow = if petal.shadow > 0.0 { shadow } else { 0.0 };
        let gain = depth + petal.tint + veins + 0.12 * side + 0.08 * facing - outline - shadow;
        scale(colour, gain)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kind::Petals;
    use super::*;
    use crate::random;

    const FACING: Pose = Pose {
        centre: [0.5, 0.5],
        radius: 0.4,
        rotation: 0.0,
        tilt_axis: 0.0,
        tilt_cosine: 1.0,
        light: -1.2,
    };

    fn grown(form: FlowerForm, petals: Petals, marking: Marking, rings: Rings, seed: u64) -> Flower {
        let kind =
            FlowerKind { rings, petals, marking, colour: Colour::Violet, form, centre: Centre::Yellow };
        Flower::grow(kind, FACING, &mut random::stream(seed, 0))
    }

    /// How often a circle of `radius` around the middle enters a petal.
    fn lobes(flower: &Flower, radius: f32) -> usize {
        const STEPS: usize = 4000;
        let on = |step: usize| {
            let (sin, cos) = (step as f32 / STEPS as f32 * TAU).sin_cos();
            flower.colour_at(radius * cos, radius * sin).is_some()
        };
        (0..STEPS).filter(|&step| !on(step) && on(step + 1)).count()
    }

    #[test]
    fn a_flower_has_as_many_petals_as_its_name_says() {
        for form in [FlowerForm::Rosette, FlowerForm::Star, FlowerForm::Daisy, FlowerForm::Pinwheel] {
            for petals in form.petal_counts() {
                for (rings, seed) in [(Rings::Single, 1), (Rings::Double, 2)] {
                    let flower = grown(form, petals, Marking::Plain, rings, seed);
                    assert_eq!(lobes(&flower, 0.88), petals.count(), "{}", flower.kind.name());
                }
            }
        }
    }

    #[test]
    fn a_heart_has_two_lobes_a_petal() {
        let flower = grown(FlowerForm::Heart, Petals::Five, Marking::Plain, Rings::Single, 3);
        assert_eq!(lobes(&flower, 0.88), 10);
    }

    #[test]
    fn a_double_flower_has_a_second_ring_above_the_first() {
        let double = grown(FlowerForm::Star, Petals::Five, Marking::Plain, Rings::Double, 4);
        assert_eq!(double.petals.len(), 10);
        let top_petal = |radius: f32, turn: f32| {
            let (sin, cos) = (TAU * turn / 5.0).sin_cos();
            let (x, y) = (radius * cos, radius * sin);
            double.petals.iter().position(|petal| petal.locate(FlowerForm::Star, x, y).is_some())
        };
        for petal in 0..5 {
            // The inner petals cover the seams of the outer ring, which reaches beyond them.
            assert_eq!(top_petal(0.35, petal as f32), Some(petal));
            assert_eq!(top_petal(0.75, petal as f32 + 0.5), Some(petal + 5));
        }
    }

    /// Saturation of the petal colour at (u, v): 0 is grey or white.
    fn saturation(marking: Marking, u: f32, v: f32) -> f32 {
        let flower = grown(FlowerForm::Rosette, Petals::Five, marking, Rings::Single, 5);
        let colour = flower.petal_at(&flower.petals[0], u, v, u);
        let (low, high) = colour.iter().fold((f32::MAX, 0.0f32), |(low, high), &c| (low.min(c), high.max(c)));
        1.0 - low / high
    }

    #[test]
    fn markings_are_where_their_words_say() {
        assert!(saturation(Marking::WhiteEdged, 0.5, 0.8) < 0.1);
        assert!(saturation(Marking::WhiteEdged, 0.98, 0.0) < 0.1);
        assert!(saturation(Marking::WhiteEdged, 0.5, 0.0) > 0.4);
        assert!(saturation(Marking::WhiteStriped, 0.5, 0.0) < 0.1);
        assert!(saturation(Marking::WhiteStriped, 0.5, 0.6) > 0.4);
        let brightness = |u: f32| {
            let flower = grown(FlowerForm::Rosette, Petals::Five, Marking::DarkThroated, Rings::Single, 6);
            flower.petal_at(&flower.petals[0], u, 0.0, u).iter().sum::<f32>()
        };
        assert!(brightness(0.3) < 0.4 * brightness(0.8));
    }

    #[test]
    fn the_tilt_and_turn_are_undone_point_by_point() {
        let mut flower = grown(FlowerForm::Star, Petals::Five, Marking::Plain, Rings::Single, 7);
        flower.pose = Pose { rotation: 0.7, tilt_axis: 1.9, tilt_cosine: 0.6, ..FACING };
        // The axis of the tilt keeps its length; across it, lengths shrink by the cosine.
        let (sin, cos) = 1.9f32.sin_cos();
        let (x, y) = flower.to_plane()(0.5 + 0.4 * cos, 0.5 + 0.4 * sin);
        approx::assert_abs_diff_eq!(x.hypot(y), 1.0, epsilon = 1e-5);
        approx::assert_abs_diff_eq!(y.atan2(x), 1.9 - 0.7, epsilon = 1e-5);
        let (x, y) = flower.to_plane()(0.5 - 0.4 * 0.6 * sin, 0.5 + 0.4 * 0.6 * cos);
        approx::assert_abs_diff_eq!(x.hypot(y), 1.0, epsilon = 1e-5);
        approx::assert_abs_diff_eq!(y.atan2(x), 1.9 - 0.7 + PI / 2.0, epsilon = 1e-5);
    }
}
