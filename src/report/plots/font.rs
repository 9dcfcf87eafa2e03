//! The letters of the pictures: one font, in the binary, measured and drawn the same everywhere.

use crate::train::{Result, TrainError};
use ab_glyph::{Font, FontRef, GlyphId, PxScale, point};
use std::path::Path;

/// DejaVu Sans, and for SVGs on machines without it fonts of about the same widths.
pub const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

/// What stands for the middle of a name that is too long.
const GAP: char = '…';

/// A font, sizes in units of its em.
pub struct Typeface {
    font: FontRef<'static>,
    /// Scale of `ab_glyph`, which is that of the line height, for an em of 1.
    scale: f32,
    units_per_em: f32,
}

impl Typeface {
    /// The font in the binary.
    ///
    /// # Errors
    /// Font data that cannot be read, which is a fault of the build.
    pub fn embedded() -> Result<Self> {
        let bytes = include_bytes!("../../../assets/fonts/DejaVuSans-subset.ttf");
        let font = FontRef::try_from_slice(bytes).ok();
        font.and_then(|font| {
            let units_per_em = font.units_per_em()?;
            let scale = font.height_unscaled() / units_per_em;
            Some(Typeface { font, scale, units_per_em })
        })
        .ok_or_else(|| {
            let problem = "the font in the binary cannot be read; build the engine again";
            TrainError::file(Path::new("DejaVuSans-subset.ttf"), problem)
        })
    }

    /// Width of `text` on one line.
    pub fn width(&self, text: &str, size: f64) -> f64 {
        let advances = text.chars().map(|c| self.font.h_advance_unscaled(self.font.glyph_id(c)));
        f64::from(advances.sum::<f32>() / self.units_per_em) * size
    }

    /// `text` without as much of its middle as does not fit into `width`.
    pub fn shorten(&self, text: &str, size: f64, width: f64) -> String {
        let letters: Vec<char> = text.chars().collect();
        let mut short = text.to_owned();
        let mut kept = letters.len();
        while self.width(&short, size) > width && kept > 2 {
            kept -= 1;
            let (head, tail) = (&letters[..kept.div_ceil(2)], &letters[letters.len() - kept / 2..]);
            short = head.iter().chain(&[GAP]).chain(tail).collect();
        }
        short
    }

    /// All `names` shortened to `width`, so that different ones stay different: where the middle tells names
    /// apart, what is around it goes.
    pub fn shorten_each(&self, names: &[String], size: f64, width: f64) -> Vec<String> {
        let short: Vec<String> = names.iter().map(|name| self.shorten(name, size, width)).collect();
        let one = |(i, text): (usize, &String)| {
            let alike = short.iter().zip(names).filter(|(other, _)| *other == text).map(|(_, name)| &**name);
            let alike: Vec<&str> = alike.filter(|name| *name != names[i]).collect();
            if alike.is_empty() {
                return text.clone();
            }
            self.keep_difference(&names[i], &alike, size, width)
                .unwrap_or_else(|| self.shorten(&format!("{i} {}", names[i]), size, width))
        };
        short.iter().enumerate().map(one).collect()
    }

    /// `name` with the part that none of `others` has in its place, and as much around it as there is room
    /// for; none if that part alone is too long.
    fn keep_difference(&self, name: &str, others: &[&str], size: f64, width: f64) -> Option<String> {
        let letters: Vec<char> = name.chars().collect();
        let same = |a: &mut dyn Iterator<Item = char>, b: &mut dyn Iterator<Item = char>| {
            a.zip(b).take_while(|(a, b)| a == b).count()
        };
        let head = others.iter().map(|other| same(&mut name.chars(), &mut other.chars())).min()?;
        let tail =
            others.iter().map(|other| same(&mut name.chars().rev(), &mut other.chars().rev())).min()?;
        let end = letters.len().saturating_sub(tail).max(head);
        (0..=head.min(letters.len() - end)).rev().find_map(|kept| {
            let gap = [GAP];
            let parts: [&[char]; 5] =
                [&letters[..kept], &gap, &letters[head..end], &gap, &letters[letters.len() - kept..]];
            let text: String = parts.into_iter().flatten().collect();
            (self.width(&text, size) <= width).then_some(text)
        })
    }

    /// Calls `pixel` with place and coverage of each pixel of `text`, whose baseline begins at (0, 0).
    pub fn draw<E>(
        &self,
        text: &str,
        size: f64,
        mut pixel: impl FnMut(i32, i32, f32) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let em = size as f32;
        let mut x = 0.0;
        for c in text.chars() {
            let id: GlyphId = self.font.glyph_id(c);
            let glyph = id.with_scale_and_position(PxScale::from(em * self.scale), point(x, 0.0));
            x += self.font.h_advance_unscaled(id) / self.units_per_em * em;
            let Some(outline) = self.font.outline_glyph(glyph) else { continue };
            let corner = outline.px_bounds().min;
            let mut result = Ok(());
            outline.draw(|dx, dy, coverage| {
                if result.is_ok() && coverage > 0.0 {
                    let (left, top) = (corner.x as i32, corner.y as i32);
                    result = pixel(left + dx as i32, top + dy as i32, coverage.min(1.0));
                }
            });
            result?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_lose_their_middle() {
        let font = Typeface::embedded().unwrap();
        assert_eq!(font.shorten("short", 10.0, 100.0), "short");
        let names = ["star", "heart"].map(|form| format!("five-petalled violet {form} with a yellow centre"));
        let each = font.shorten_each(&[names[0].clone(), names[1].clone(), "rose".into()], 10.0, 110.0);
        assert!(each[0].contains("star") && each[1].contains("heart") && each[2] == "rose", "{each:?}");
        assert!(each.iter().all(|name| font.width(name, 10.0) <= 110.0), "{each:?}");
        let short = font.shorten("a name that is much too long to be written", 10.0, 100.0);
        assert!(short.starts_with("a name") && short.ends_with("itten") && short.contains('…'), "{short}");
        assert!(font.width(&short, 10.0) <= 100.0);
        assert!(font.width(&short, 10.0) > 85.0);
    }

    #[test]
    fn latin_greek_and_cyrillic_have_letters() {
        let font = Typeface::embedded().unwrap();
        for c in "Aäßřőąḿ αβΩώἀ Жяїґћ 0–9 “…” ≥ · →".chars() {
            assert_ne!(font.font.glyph_id(c).0, 0, "{c:?}");
        }
    }
}
