//! The letters of the pictures: one font, in the binary, measured and drawn the same everywhere; for what it
//! lacks, the fonts of the machine.

use super::machine::{Face, Machine, Region};
use super::script::{clusters, help, is_invisible, mirrored, runs, script_of};
use crate::train::{Result, TrainError};
use ab_glyph::{Font, FontRef, GlyphId, GlyphImageFormat, PxScale, point};
use image::imageops::{FilterType, resize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use unicode_width::UnicodeWidthStr;

/// DejaVu Sans, and for SVGs on machines without it fonts of about the same widths.
pub const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

/// What stands for the middle of a name that is too long.
const GAP: char = '…';

/// What stands for letters that no font has.
const UNKNOWN: &str = "?";

/// A font, sizes in units of its em.
pub struct Typeface {
    font: FontRef<'static>,
    /// Scale of `ab_glyph`, which is that of the line height, for an em of 1.
    scale: f32,
    units_per_em: f32,
    machine: Machine,
    /// Scripts that no font has: the first such letter, and the package that helps.
    missing: RefCell<BTreeMap<&'static str, (String, &'static str)>>,
}

/// What a pixel of a text shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ink {
    /// A share of the text's own colour.
    Own(f32),
    /// A colour and its share.
    Other([u8; 3], f32),
}

/// A part of a line that is drawn with one font.
enum Part {
    /// With the font in the binary, letter by letter.
    Bundled(String),
    Machine {
        face: Rc<Face>,
        word: String,
        right_to_left: bool,
    },
    /// No font has it.
    Unknown(String),
}

impl Typeface {
    /// The font in the binary, and those of the machine.
    ///
    /// # Errors
    /// Font data that cannot be read, which is a fault of the build.
    pub fn embedded() -> Result<Self> {
        Self::beside(None)
    }

    /// The font in the binary, and those in `folders`; none for those of the machine.
    pub fn beside(folders: Option<Vec<PathBuf>>) -> Result<Self> {
        let bytes = include_bytes!("../../../assets/fonts/DejaVuSans-subset.ttf");
        let font = FontRef::try_from_slice(bytes).ok();
        font.and_then(|font| {
            let units_per_em = font.units_per_em()?;
            let scale = font.height_unscaled() / units_per_em;
            let (machine, missing) = (Machine::new(folders), RefCell::default());
            Some(Typeface { font, scale, units_per_em, machine, missing })
        })
        .ok_or_else(|| {
            let problem = "the font in the binary cannot be read; build the engine again";
            TrainError::file(Path::new("DejaVuSans-subset.ttf"), problem)
        })
    }

    fn bundled(&self, text: &str) -> bool {
        text.chars().all(|c| self.font.glyph_id(c).0 != 0 || is_invisible(c))
    }

    /// Whether every letter of `text` has a font.
    pub fn has(&self, text: &str) -> bool {
        self.bundled(text) || !self.parts(text).iter().any(|part| matches!(part, Part::Unknown(_)))
    }

    /// What could not be written so far, in words; none where everything could.
    pub fn warning(&self) -> Option<String> {
        let missing = self.missing.borrow();
        if missing.is_empty() {
            return None;
        }
        let scripts: Vec<String> =
            missing.iter().map(|(script, (letter, _))| format!("{script} ({letter})")).collect();
        let mut packages: Vec<&str> = missing.values().map(|(_, package)| *package).collect();
        packages.sort_unstable();
        packages.dedup();
        Some(format!(
            "no font of this machine has {}: the PNG pictures show the classes' numbers instead, report.html and the \
             SVG pictures their names; on Debian, apt-get install {}",
            scripts.join(", "),
            packages.join(" ")
        ))
    }

    /// `text` in the order of the line, from left to right.
    fn parts(&self, text: &str) -> Vec<Part> {
        if text.chars().all(|c| self.font.glyph_id(c).0 != 0 && !is_invisible(c)) {
            return vec![Part::Bundled(text.to_owned())];
        }
        let region = Region::of(text);
        let mut parts = Vec::new();
        for run in runs(text) {
            let mut of_run = self.parts_of_run(&text[run.range], run.right_to_left, region);
            if run.right_to_left {
                of_run.reverse();
            }
            parts.append(&mut of_run);
        }
        parts
    }

    /// The parts of a text of one direction, as they are read.
    fn parts_of_run(&self, text: &str, right_to_left: bool, region: Region) -> Vec<Part> {
        let (mut parts, mut script) = (Vec::new(), None);
        for cluster in clusters(text) {
            let visible: Vec<char> = cluster.chars().filter(|&c| !is_invisible(c)).collect();
            let own = script_of(cluster);
            if self.bundled(cluster) {
                match parts.last_mut() {
                    // Joiners and marks of a direction belong to the word.
                    Some(Part::Machine { word, .. }) if visible.is_empty() => word.push_str(cluster),
                    Some(Part::Bundled(word)) if right_to_left => word.insert_str(0, &turned(cluster)),
                    Some(Part::Bundled(word)) => word.push_str(cluster),
                    _ if right_to_left => parts.push(Part::Bundled(turned(cluster))),
                    _ => parts.push(Part::Bundled(cluster.to_owned())),
                }
                continue;
            }
            let Some(face) = self.machine.face(&visible, region) else {
                let (name, package) = help(cluster);
                self.missing.borrow_mut().entry(name).or_insert_with(|| (cluster.to_owned(), package));
                match parts.last_mut() {
                    Some(Part::Unknown(word)) => word.push_str(cluster),
                    _ => parts.push(Part::Unknown(cluster.to_owned())),
                }
                continue;
            };
            let same_script = own.is_none() || script.is_none() || own == script;
            script = own.or(script);
            match parts.last_mut() {
                Some(Part::Machine { face: last, word, .. }) if same_script && Rc::ptr_eq(last, &face) => {
                    word.push_str(cluster);
                }
                _ => parts.push(Part::Machine { face, word: cluster.to_owned(), right_to_left }),
            }
        }
        parts
    }

    /// Width of `text` on one line. What has no font here may have one where an SVG is shown.
    pub fn width(&self, text: &str, size: f64) -> f64 {
        let parts = self.parts(text);
        let em = parts.iter().map(|part| match part {
            Part::Bundled(word) => self.bundled_width(word),
            Part::Machine { face, word, right_to_left } => face.shape(word, *right_to_left).1,
            Part::Unknown(word) => 0.6 * word.width() as f32,
        });
        f64::from(em.sum::<f32>()) * size
    }

    fn bundled_width(&self, text: &str) -> f32 {
        let advances = self.letters(text).map(|id| self.font.h_advance_unscaled(id));
        advances.sum::<f32>() / self.units_per_em
    }

    /// The glyphs of a text that the font in the binary has.
    fn letters(&self, text: &str) -> impl Iterator<Item = GlyphId> {
        let glyphs = text.chars().map(|c| (c, self.font.glyph_id(c)));
        glyphs.filter(|(c, id)| id.0 != 0 || !is_invisible(*c)).map(|(_, id)| id)
    }

    /// `text` in lines of `width` at the most, broken between words where that is possible.
    pub fn lines(&self, text: &str, size: f64, width: f64) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        let mut line = String::new();
        for word in text.split_inclusive([' ', '_', '-', '/']) {
            if !line.is_empty() && self.width((line.clone() + word).trim_end(), size) > width {
                lines.push(std::mem::take(&mut line).trim_end().to_owned());
            }
            for cluster in clusters(word) {
                if !line.is_empty() && self.width((line.clone() + cluster).trim_end(), size) > width {
                    lines.push(std::mem::take(&mut line).trim_end().to_owned());
                }
                line.push_str(cluster);
            }
        }
        if !line.trim().is_empty() || lines.is_empty() {
            lines.push(line.trim_end().to_owned());
        }
        lines
    }

    /// `text` without as much of its middle as does not fit into `width`.
    pub fn shorten(&self, text: &str, size: f64, width: f64) -> String {
        let letters: Vec<&str> = clusters(text).collect();
        let mut short = text.to_owned();
        let mut kept = letters.len();
        while self.width(&short, size) > width && kept > 2 {
            kept -= 1;
            let (head, tail) = (&letters[..kept.div_ceil(2)], &letters[letters.len() - kept / 2..]);
            short = format!("{}{GAP}{}", head.concat(), tail.concat());
        }
        short
    }

    /// Calls `pixel` with place and ink of each pixel of `text`, whose baseline begins at (0, 0).
    pub fn draw<E>(
        &self,
        text: &str,
        size: f64,
        mut pixel: impl FnMut(i32, i32, Ink) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let em = size as f32;
        let mut x = 0.0;
        for part in self.parts(text) {
            match part {
                Part::Bundled(word) => x = self.draw_letters(&word, em, x, &mut pixel)?,
                Part::Unknown(_) => x = self.draw_letters(UNKNOWN, em, x, &mut pixel)?,
                Part::Machine { face, word, right_to_left } => {
                    let (glyphs, width) = face.shape(&word, right_to_left);
                    let font = &face.outlines;
                    let scale = font.height_unscaled() / face.units_per_em;
                    for glyph in glyphs {
                        let at = (x + glyph.x * em, -glyph.y * em);
                        draw_glyph(font, glyph.id, em, scale, at, &mut pixel)?;
                    }
                    x += width * em;
                }
            }
        }
        Ok(())
    }

    /// Draws with the font in the binary from `x` on; returns where the next letter begins.
    fn draw_letters<E>(
        &self,
        text: &str,
        em: f32,
        mut x: f32,
        pixel: &mut impl FnMut(i32, i32, Ink) -> std::result::Result<(), E>,
    ) -> std::result::Result<f32, E> {
        for id in self.letters(text) {
            draw_outline(&self.font, id, em * self.scale, (x, 0.0), pixel)?;
            x += self.font.h_advance_unscaled(id) / self.units_per_em * em;
        }
        Ok(x)
    }
}

/// Letters in the order in which they stand where the text is read from the right.
fn turned(cluster: &str) -> String {
    cluster.chars().map(mirrored).collect()
}

fn draw_outline<E>(
    font: &impl Font,
    id: GlyphId,
    scale: f32,
    (x, y): (f32, f32),
    pixel: &mut impl FnMut(i32, i32, Ink) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let glyph = id.with_scale_and_position(PxScale::from(scale), point(x, y));
    let Some(outline) = font.outline_glyph(glyph) else { return Ok(()) };
    let corner = outline.px_bounds().min;
    let mut result = Ok(());
    outline.draw(|dx, dy, coverage| {
        if result.is_ok() && coverage > 0.0 {
            let (left, top) = (corner.x as i32, corner.y as i32);
            result = pixel(left + dx as i32, top + dy as i32, Ink::Own(coverage.min(1.0)));
        }
    });
    result
}

/// Draws a glyph of a font that may have pictures in place of outlines.
fn draw_glyph<E>(
    font: &impl Font,
    id: GlyphId,
    em: f32,
    scale: f32,
    at: (f32, f32),
    pixel: &mut impl FnMut(i32, i32, Ink) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let picture = font.glyph_raster_image2(id, em.ceil() as u16);
    let Some(picture) = picture.filter(|picture| matches!(picture.format, GlyphImageFormat::Png)) else {
        return draw_outline(font, id, em * scale, at, pixel);
    };
    let decoded = image::load_from_memory_with_format(picture.data, image::ImageFormat::Png);
    let Ok(decoded) = decoded.map(|image| image.into_rgba8()) else { return Ok(()) };
    let factor = em / f32::from(picture.pixels_per_em.max(1));
    let side = |pixels: u32| ((pixels as f32 * factor).round() as u32).max(1);
    let (width, height) = (side(decoded.width()), side(decoded.height()));
    let small = resize(&decoded, width, height, FilterType::Triangle);
    let left = (at.0 + picture.origin.x * factor).round() as i32;
    let bottom = (at.1 - picture.origin.y * factor).round() as i32;
    for (dx, dy, image::Rgba([r, g, b, alpha])) in small.enumerate_pixels() {
        if *alpha > 0 {
            let ink = Ink::Other([*r, *g, *b], f32::from(*alpha) / 255.0);
            pixel(left + dx as i32, bottom - height as i32 + dy as i32, ink)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_lose_their_middle() {
        let font = Typeface::embedded().unwrap();
        assert_eq!(font.shorten("short", 10.0, 100.0), "short");
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

    fn with(fonts: bool) -> Typeface {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fonts");
        Typeface::beside(Some(if fonts { vec![folder] } else { Vec::new() })).unwrap()
    }

    type Pixels = Vec<(i32, i32, Ink)>;

    fn pixels(font: &Typeface, text: &str) -> Pixels {
        let mut pixels = Vec::new();
        let add = |x, y, ink| -> std::result::Result<(), ()> {
            pixels.push((x, y, ink));
            Ok(())
        };
        font.draw(text, 40.0, add).unwrap();
        pixels
    }

    /// Where ink begins and ends from left to right.
    fn extent(pixels: &Pixels) -> (i32, i32) {
        let x = || pixels.iter().map(|p| p.0);
        (x().min().unwrap(), x().max().unwrap())
    }

    #[test]
    fn letters_of_the_bundled_font_do_not_depend_on_others() {
        let (few, many) = (with(false), with(true));
        for text in ["Gänseblümchen (wild) – 12", "Роза", "e\u{301}lan"] {
            assert_eq!(pixels(&few, text), pixels(&many, text), "{text}");
            assert_eq!(few.width(text, 10.0), many.width(text, 10.0), "{text}");
        }
        assert_eq!((few.warning(), many.warning()), (None, None));
    }

    #[test]
    fn scripts_are_written_with_the_fonts_of_the_machine() {
        let font = with(true);
        for name in ["玫瑰花", "ばら (薔薇)", "وردة حمراء", "गुलाब का फूल", "🌹", "rose 玫瑰"]
        {
            assert!(font.has(name), "{name}");
            let (ink, width) = (pixels(&font, name), font.width(name, 40.0));
            let (left, right) = extent(&ink);
            assert!(left >= -4 && f64::from(right) <= width + 4.0, "{name}: {left} {right} {width}");
            assert!(f64::from(right - left) > 0.6 * width, "{name}: {left} {right} {width}");
        }
        assert_eq!(font.warning(), None);
        let is_red =
            |(_, _, ink): &(i32, i32, Ink)| matches!(ink, Ink::Other([r, g, b], _) if r > g && r > b);
        assert!(pixels(&font, "🌹").iter().any(is_red));
    }

    #[test]
    fn letters_are_joined_and_read_in_their_direction() {
        let font = with(true);
        let width = |text: &str| font.width(text, 40.0);
        // Letters that stand beside each other are not those that stand alone.
        let alone = width("ح") + width("م") + width("ر");
        assert!((width("حمر") - alone).abs() > 1.0, "{} {alone}", width("حمر"));
        // The vowel sign is written before its consonant, and two consonants become one.
        assert_ne!(pixels(&font, "कि"), [pixels(&font, "क"), pixels(&font, "ि")].concat());
        assert!(width("क्ष") < 1.6 * width("क"), "{} {}", width("क्ष"), width("क"));
        // The first word of what is read from the right stands on the right, and brackets turn.
        let words = |text: &str| -> Vec<String> {
            let parts = font.parts(text).into_iter().map(|part| match part {
                Part::Bundled(word) | Part::Machine { word, .. } | Part::Unknown(word) => word,
            });
            parts.collect()
        };
        assert_eq!(words("وردة حمراء"), ["حمراء", " ", "وردة"]);
        assert_eq!(words("\u{2067}وردة (12)\u{2069}").concat().trim_matches(is_invisible), "(12) وردة");
        assert_eq!(words("وردة a"), ["وردة", " a"]);
        assert_eq!(extent(&pixels(&font, "a وردة")).0, extent(&pixels(&font, "a")).0);
    }

    #[test]
    fn what_no_font_has_is_said_once() {
        let font = with(false);
        let names = ["rose", "玫瑰花", "玫瑰", "गुलाब", "🌹 rose"];
        assert_eq!(names.map(|name| font.has(name)), [true, false, false, false, false]);
        let warning = font.warning().unwrap();
        for part in ["Han (玫)", "Devanagari (गु)", "emoji (🌹)"] {
            assert_eq!(warning.matches(part).count(), 1, "{part}: {warning}");
        }
        let packages = "apt-get install fonts-noto-cjk fonts-noto-color-emoji fonts-noto-core";
        assert!(warning.ends_with(packages), "{warning}");
        // No row of boxes in the middle of other texts either.
        assert_eq!(pixels(&font, "玫瑰花"), pixels(&font, "?"));
        assert!(font.width("玫瑰花", 10.0) > 3.0 * font.width("?", 10.0));
    }

    #[test]
    fn lines_lose_no_letter() {
        let font = with(true);
        let name = "five-petalled violet star with a yellow centre";
        let lines = font.lines(name, 10.0, 100.0);
        assert!(lines.len() > 1 && lines.iter().all(|line| font.width(line, 10.0) <= 100.0), "{lines:?}");
        assert_eq!(lines.join(" ").replace("- ", "-"), name);
        let word = "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz";
        assert_eq!(font.lines(word, 10.0, 100.0).concat(), word);
        assert_eq!(
            (font.lines("", 10.0, 100.0), font.lines("rose", 10.0, 100.0)),
            (vec![String::new()], vec!["rose".into()])
        );
    }
}
