//! The letters of the pictures: a font in the binary, and for what it lacks the fonts of the machine.
//!
//! Which font has which letter is decided here, so that the choice is the same on every machine with these fonts.
//! Shaping, the order on the line and the outlines are usvg's.

use crate::train::{Result, TrainError};
use resvg::usvg::fontdb::{Database, FaceInfo, ID, Source, Stretch, Style};
use resvg::usvg::{FontFamily, FontResolver, Node, Options, Tree};
use skrifa::MetadataProvider;
use skrifa::instance::{LocationRef, Size};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use unicode_bidi::{BidiClass, bidi_class};
use unicode_script::{Script, UnicodeScript};
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// DejaVu Sans, and for SVGs on machines without it fonts of about the same widths.
pub(crate) const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

const EMBEDDED: &[u8] = include_bytes!("../../../assets/fonts/DejaVuSans-subset.ttf");

/// Stand-in for letters that no font has.
const UNKNOWN: &str = "?";

/// Measures texts, and says which font draws what.
pub(crate) struct Typeface {
    embedded: skrifa::FontRef<'static>,
    /// Folders to look for fonts in; none for those of the system.
    folders: Option<Vec<PathBuf>>,
    /// Whose forms Han characters have.
    region: &'static str,
    /// The font in the binary alone, until a letter needs another.
    fonts: RefCell<Arc<Database>>,
    /// The place among `fonts` of the font of a cluster, none where no font has it.
    choices: RefCell<HashMap<String, Option<usize>>>,
    /// In em.
    widths: RefCell<HashMap<Run, f64>>,
    /// Scripts that no font has: the first such letter, and the package that helps.
    missing: RefCell<BTreeMap<&'static str, (String, &'static str)>>,
}

/// A part of a text that one font draws.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Run {
    /// The font's place; none where no font has the letters.
    font: Option<usize>,
    text: String,
}

impl Typeface {
    /// The font in the binary, and those of the machine. `names` tell whose forms Han characters have in pictures.
    ///
    /// # Errors
    /// Font data that cannot be read, which is a fault of the build.
    pub fn new(names: &[String]) -> Result<Self> {
        Self::beside(None, names)
    }

    /// The font in the binary, and those in `folders`; none for those of the machine.
    pub fn beside(folders: Option<Vec<PathBuf>>, names: &[String]) -> Result<Self> {
        let embedded = skrifa::FontRef::new(EMBEDDED).map_err(|_| {
            let problem = "the font in the binary cannot be read; build the engine again";
            TrainError::file(Path::new("DejaVuSans-subset.ttf"), problem)
        })?;
        Ok(Typeface {
            embedded,
            folders,
            region: region(names),
            fonts: RefCell::new(Arc::new(embedded_alone())),
            choices: RefCell::default(),
            widths: RefCell::default(),
            missing: RefCell::default(),
        })
    }

    fn is_embedded(&self, text: &str) -> bool {
        let letters = self.embedded.charmap();
        text.chars().all(|c| letters.map(c).is_some() || is_invisible(c))
    }

    /// Whether every letter of `text` has a font.
    pub fn has(&self, text: &str) -> bool {
        self.parts(text).iter().all(|part| part.font.is_some())
    }

    /// Says which scripts could not be written so far; none where everything could.
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

    /// `text` in the order of reading, in parts that one font draws.
    fn parts(&self, text: &str) -> Vec<Run> {
        if self.is_embedded(text) {
            return vec![Run { font: Some(0), text: text.to_owned() }];
        }
        let mut parts: Vec<Run> = Vec::new();
        for cluster in text.graphemes(true) {
            let font = self.font_of(cluster);
            match parts.last_mut() {
                // Joiners and marks of a direction belong to the word.
                Some(last) if last.font == font || cluster.chars().all(is_invisible) => {
                    last.text.push_str(cluster);
                }
                _ => parts.push(Run { font, text: cluster.to_owned() }),
            }
        }
        parts
    }

    /// The place among the fonts of the one that draws a letter with its marks.
    fn font_of(&self, cluster: &str) -> Option<usize> {
        if self.is_embedded(cluster) {
            return Some(0);
        }
        if let Some(&known) = self.choices.borrow().get(cluster) {
            return known;
        }
        if self.fonts.borrow().len() == 1 {
            *self.fonts.borrow_mut() = Arc::new(self.with_machine());
        }
        let fonts = self.fonts.borrow();
        let has_all = |id: ID| {
            let has = |data: &[u8], index: u32| {
                let letters = skrifa::FontRef::from_index(data, index).ok()?.charmap();
                Some(cluster.chars().all(|c| is_invisible(c) || letters.map(c).is_some()))
            };
            fonts.with_face_data(id, has).flatten() == Some(true)
        };
        let font = fonts.faces().position(|face| has_all(face.id));
        if font.is_none() {
            let (name, package) = help(cluster);
            self.missing.borrow_mut().entry(name).or_insert_with(|| (cluster.to_owned(), package));
        }
        self.choices.borrow_mut().insert(cluster.to_owned(), font);
        font
    }

    /// The font in the binary in front, the others in an order that does not depend on the file system's.
    fn with_machine(&self) -> Database {
        let mut found = Database::new();
        match &self.folders {
            Some(folders) => folders.iter().for_each(|folder| found.load_fonts_dir(folder)),
            None => found.load_system_fonts(),
        }
        let mut faces: Vec<&FaceInfo> = found.faces().collect();
        faces.sort_by_cached_key(|face| rank(face, self.region));
        let mut fonts = embedded_alone();
        faces.into_iter().for_each(|face| {
            fonts.push_face_info(face.clone());
        });
        fonts
    }

    /// Width of `text` on one line. What has no font here may have one where an SVG is shown.
    pub fn width(&self, text: &str, size: f64) -> f64 {
        self.parts(text).into_iter().map(|part| self.part_width(part)).sum::<f64>() * size
    }

    fn part_width(&self, part: Run) -> f64 {
        match part.font {
            None => 0.6 * part.text.width() as f64,
            Some(0) => {
                let letters = self.embedded.charmap();
                let metrics = self.embedded.glyph_metrics(Size::new(1.0), LocationRef::default());
                let ids = part.text.chars().filter_map(|c| letters.map(c));
                ids.map(|id| f64::from(metrics.advance_width(id).unwrap_or(0.0))).sum()
            }
            Some(_) => {
                if let Some(&known) = self.widths.borrow().get(&part) {
                    return known;
                }
                let width = self.shaped_width(&part);
                self.widths.borrow_mut().insert(part, width);
                width
            }
        }
    }

    /// As usvg lays a part out.
    fn shaped_width(&self, part: &Run) -> f64 {
        const SIZE: f32 = 100.0;
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\"><text font-size=\"{SIZE}\" xml:space=\"preserve\">{}</text></svg>",
            part.svg()
        );
        let tree = Tree::from_str(&svg, &self.options());
        let width = tree.ok().and_then(|tree| match tree.root().children().first() {
            Some(Node::Text(text)) => Some(text.bounding_box().width() / SIZE),
            _ => None,
        });
        f64::from(width.unwrap_or(0.0))
    }

    /// How usvg reads pictures whose texts are [`Typeface::spans`].
    pub fn options(&self) -> Options<'static> {
        let place = |families: &[FontFamily]| match families {
            [FontFamily::Named(name)] => name.strip_prefix("font-")?.parse::<usize>().ok(),
            _ => None,
        };
        let font_resolver = FontResolver {
            select_font: Box::new(move |font, fonts| {
                fonts.faces().nth(place(font.families()).unwrap_or(0)).map(|face| face.id)
            }),
            select_fallback: Box::new(|_, _, _| None),
        };
        Options { fontdb: self.fonts.borrow().clone(), font_resolver, ..Options::default() }
    }

    /// The content of a text element that usvg draws with these fonts; none where that is the text itself.
    pub(crate) fn spans(&self, text: &str) -> Option<String> {
        match &self.parts(text)[..] {
            [Run { font: Some(0), .. }] => None,
            parts => Some(parts.iter().map(Run::svg).collect()),
        }
    }

    /// `text` in lines of `width` at the most, broken between words where that is possible.
    pub fn lines(&self, text: &str, size: f64, width: f64) -> Vec<String> {
        if self.width(text, size) <= width {
            return vec![text.to_owned()];
        }
        let mut lines: Vec<String> = Vec::new();
        let mut line = String::new();
        for word in text.split_inclusive([' ', '_', '-', '/']) {
            if !line.is_empty() && self.width((line.clone() + word).trim_end(), size) > width {
                lines.push(std::mem::take(&mut line).trim_end().to_owned());
            }
            for cluster in word.graphemes(true) {
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
}

impl Run {
    fn svg(&self) -> String {
        match self.font {
            Some(0) => escaped(&self.text),
            Some(place) => format!("<tspan font-family=\"font-{place}\">{}</tspan>", escaped(&self.text)),
            None => UNKNOWN.to_owned(),
        }
    }
}

fn embedded_alone() -> Database {
    let mut fonts = Database::new();
    fonts.load_font_source(Source::Binary(Arc::new(EMBEDDED)));
    fonts
}

/// How fonts are marked that have the Han characters of a region, by the letters that stand beside these.
fn region(names: &[String]) -> &'static str {
    let has = |range: std::ops::RangeInclusive<char>| {
        names.iter().flat_map(|n| n.chars()).any(|c| range.contains(&c))
    };
    if has('\u{3040}'..='\u{30ff}') {
        " JP"
    } else if has('\u{ac00}'..='\u{d7a3}') {
        " KR"
    } else {
        " SC"
    }
}

/// Upright sans-serif fonts of regular weight first; among equals by name, so that the choice is the same on every
/// machine that has them.
fn rank(face: &FaceInfo, region: &str) -> (bool, u16, bool, bool, bool, bool, String) {
    let name = face.families.first().map(|(name, _)| name.clone()).unwrap_or_default();
    let plain = name.contains("Sans") && !name.contains("UI") && !name.contains("Display");
    (
        face.style != Style::Normal,
        face.weight.0.abs_diff(400),
        face.stretch != Stretch::Normal,
        face.monospaced,
        !plain,
        !face.families.iter().any(|(name, _)| name.ends_with(region)),
        name,
    )
}

/// `name` so that it keeps its own direction inside a text.
pub(crate) fn isolated(name: &str) -> String {
    let is_read_from_the_right = name.chars().any(|c| matches!(bidi_class(c), BidiClass::R | BidiClass::AL));
    if is_read_from_the_right { format!("\u{2068}{name}\u{2069}") } else { name.to_owned() }
}

/// Whether a letter shows nothing by itself: joiners, selectors of a form, marks of a direction.
fn is_invisible(letter: char) -> bool {
    matches!(letter,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Names the script of a cluster's letters, and the Debian package with a font that has them.
fn help(cluster: &str) -> (&'static str, &'static str) {
    use Script::{Bopomofo, Common, Han, Hangul, Hiragana, Inherited, Katakana, Unknown};
    let script = cluster.chars().map(|c| c.script()).find(|s| !matches!(s, Common | Inherited | Unknown));
    match script {
        Some(script @ (Bopomofo | Han | Hangul | Hiragana | Katakana)) => {
            (script.full_name(), "fonts-noto-cjk")
        }
        Some(script) => (script.full_name(), "fonts-noto-core"),
        None if cluster.chars().any(is_emoji) => ("emoji", "fonts-noto-color-emoji"),
        None => ("symbols", "fonts-noto-core"),
    }
}

fn is_emoji(letter: char) -> bool {
    matches!(letter, '\u{1f000}'..='\u{1faff}' | '\u{2600}'..='\u{27bf}' | '\u{fe0f}' | '\u{20e3}')
}

/// `text` as it stands in XML, without what XML has no form of.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push(c),
            c => {
                out.push(if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { '\u{fffd}' } else { c })
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::sheet::{Anchor, INK, Sheet};
    use super::*;

    fn with(fonts: bool) -> Typeface {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fonts");
        Typeface::beside(Some(if fonts { vec![folder] } else { Vec::new() }), &[]).unwrap()
    }

    /// `text` in letters of 20 points, from 20 points on, in pixels of half a point.
    fn pixels(font: &Typeface, text: &str) -> image::RgbaImage {
        let mut sheet = Sheet::new(font, 400.0, 60.0);
        sheet.text(text, (20.0, 30.0), 20.0, INK, Anchor::Start);
        image::load_from_memory(&sheet.png().unwrap()).unwrap().into_rgba8()
    }

    /// Where ink begins and ends from left to right, in points after the beginning.
    fn extent(image: &image::RgbaImage) -> (f64, f64) {
        let inked = || image.enumerate_pixels().filter(|(.., pixel)| pixel.0[3] > 0).map(|(x, ..)| x);
        let points = |x: u32| f64::from(x) / 2.0 - 20.0;
        (points(inked().min().unwrap()), points(inked().max().unwrap()))
    }

    #[test]
    fn letters_of_the_embedded_font_do_not_depend_on_others() {
        let (few, many) = (with(false), with(true));
        for text in ["Gänseblümchen (wild) – 12", "Роза", "e\u{301}lan", "αβΩώἀ Жяїґћ 0–9 “…” ≥ · →"]
        {
            assert!(few.is_embedded(text), "{text}");
            assert_eq!(pixels(&few, text), pixels(&many, text), "{text}");
            assert_eq!(few.width(text, 10.0), many.width(text, 10.0), "{text}");
            let (ink, width) = (extent(&pixels(&few, text)), few.width(text, 20.0));
            assert!(ink.0 > -1.0 && ink.1 < width + 1.0 && ink.1 > width - 4.0, "{text}: {ink:?} {width}");
        }
        assert_eq!((few.warning(), many.warning()), (None, None));
    }

    #[test]
    fn scripts_are_written_with_the_fonts_of_the_machine() {
        let font = with(true);
        for name in [
            "玫瑰花",
            "ばら (薔薇)",
            "وردة حمراء",
            "गुलाब का फूल",
            "🌹",
            "rose 玫瑰",
            "गुलाब rose 🌹",
            "وردة (12) rose",
        ] {
            assert!(font.has(name), "{name}");
            let (ink, width) = (extent(&pixels(&font, name)), font.width(name, 20.0));
            assert!(ink.0 >= -2.0 && ink.1 <= width + 2.0, "{name}: {ink:?} {width}");
            assert!(ink.1 - ink.0 > 0.6 * width, "{name}: {ink:?} {width}");
        }
        assert_eq!(font.warning(), None);
        let is_red = |pixel: &image::Rgba<u8>| pixel.0[3] > 200 && pixel.0[0] > pixel.0[1].max(pixel.0[2]);
        assert!(pixels(&font, "🌹").pixels().any(is_red));
        assert!(!pixels(&font, "玫").pixels().any(is_red));
    }

    #[test]
    fn letters_are_joined_and_read_in_their_direction() {
        let font = with(true);
        let width = |text: &str| font.width(text, 40.0);
        // Letters that stand beside each other are not those that stand alone.
        let alone = width("ح") + width("م") + width("ر");
        assert!((width("حمر") - alone).abs() > 1.0, "{} {alone}", width("حمر"));
        // Two consonants become one.
        assert!(width("क्ष") < 1.6 * width("क"), "{} {}", width("क्ष"), width("क"));
        // The first word of what is read from the right stands on the right.
        assert_eq!(extent(&pixels(&font, "a وردة")).0, extent(&pixels(&font, "a")).0);
        let (whole, word) = (pixels(&font, "حمراء وردة"), pixels(&font, "وردة"));
        let (_, right) = extent(&word);
        let of_word = |x: u32, y: u32| x < (2.0 * (right + 20.0)) as u32 && word.get_pixel(x, y).0[3] > 128;
        let same = word.enumerate_pixels().filter(|&(x, y, _)| of_word(x, y));
        assert!(same.into_iter().all(|(x, y, _)| whole.get_pixel(x, y).0[3] > 64));
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

    #[test]
    fn what_is_missing_is_named() {
        let found = ["玫", "ば", "장", "ग", "ก", "و", "🌹", "❤\u{fe0f}", "⁂"].map(help);
        let (cjk, core, emoji) = ("fonts-noto-cjk", "fonts-noto-core", "fonts-noto-color-emoji");
        let expected = [
            ("Han", cjk),
            ("Hiragana", cjk),
            ("Hangul", cjk),
            ("Devanagari", core),
            ("Thai", core),
            ("Arabic", core),
            ("emoji", emoji),
            ("emoji", emoji),
            ("symbols", core),
        ];
        assert_eq!(found, expected);
        assert_eq!(isolated("rose"), "rose");
        assert_eq!(isolated("\u{5d0} (b)"), "\u{2068}\u{5d0} (b)\u{2069}");
    }
}
