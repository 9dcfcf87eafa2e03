//! The fonts of the machine, for what the font in the binary lacks: which of them has a letter, and what the
//! letters of a word become in their script.

use ab_glyph::{Font as Outlines, FontRef, FontVec, GlyphId};
use fontdb::{Database, FaceInfo, ID, Stretch, Style};
use harfrust::{Buffer, Direction, ShapeOptions, ShaperFont, shape};
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

/// Fonts that are looked for when the first letter needs them.
pub struct Machine {
    /// Folders to look in; none for those of the system.
    folders: Option<Vec<PathBuf>>,
    found: RefCell<Option<Rc<Found>>>,
    faces: RefCell<HashMap<ID, Option<Rc<Face>>>>,
    /// The font of letters that were asked for, none where there is none.
    choices: RefCell<HashMap<Wanted, Option<ID>>>,
}

/// Letters, and the forms in which they are wanted.
type Wanted = (Vec<char>, Region);

/// The fonts, the one that is asked first in front.
struct Found {
    fonts: Database,
    order: Vec<ID>,
}

/// Whose forms of Han characters a text is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Region {
    China,
    Japan,
    Korea,
}

impl Region {
    /// By the letters that stand beside the Han characters.
    pub fn of(text: &str) -> Self {
        let has = |range: std::ops::RangeInclusive<char>| text.chars().any(|c| range.contains(&c));
        if has('\u{3040}'..='\u{30ff}') {
            Region::Japan
        } else if has('\u{ac00}'..='\u{d7a3}') {
            Region::Korea
        } else {
            Region::China
        }
    }

    /// How the fonts that follow it are marked.
    fn mark(self) -> &'static str {
        match self {
            Region::China => " SC",
            Region::Japan => " JP",
            Region::Korea => " KR",
        }
    }
}

/// A font that is in use.
pub struct Face {
    shaped: harfrust::Font,
    pub outlines: FontVec,
    pub units_per_em: f32,
}

/// A glyph of a shaped word, in em from where the word begins on the baseline, up and to the right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placed {
    pub id: GlyphId,
    pub x: f32,
    pub y: f32,
}

impl Machine {
    /// The fonts in `folders`; none for those of the system.
    pub fn new(folders: Option<Vec<PathBuf>>) -> Self {
        Machine { folders, found: RefCell::default(), faces: RefCell::default(), choices: RefCell::default() }
    }

    fn found(&self) -> Rc<Found> {
        let mut found = self.found.borrow_mut();
        found.get_or_insert_with(|| Rc::new(Found::look_in(self.folders.as_deref()))).clone()
    }

    /// The best font that has all of `letters`.
    pub fn face(&self, letters: &[char], region: Region) -> Option<Rc<Face>> {
        let key = (letters.to_vec(), region);
        let known = self.choices.borrow().get(&key).copied();
        let choice = known.unwrap_or_else(|| {
            let choice = self.found().with(letters, region);
            self.choices.borrow_mut().insert(key, choice);
            choice
        })?;
        let load = || self.found().fonts.with_face_data(choice, Face::new).flatten().map(Rc::new);
        self.faces.borrow_mut().entry(choice).or_insert_with(load).clone()
    }
}

impl Found {
    fn look_in(folders: Option<&[PathBuf]>) -> Self {
        let mut fonts = Database::new();
        match folders {
            Some(folders) => folders.iter().for_each(|folder| fonts.load_fonts_dir(folder)),
            None => fonts.load_system_fonts(),
        }
        let mut faces: Vec<&FaceInfo> = fonts.faces().collect();
        faces.sort_by_cached_key(|face| rank(face));
        let order = faces.iter().map(|face| face.id).collect();
        Found { fonts, order }
    }

    fn with(&self, letters: &[char], region: Region) -> Option<ID> {
        let has_all = |id: &ID| {
            let has = |data: &[u8], index: u32| {
                let font = FontRef::try_from_slice_and_index(data, index).ok()?;
                Some(letters.iter().all(|&c| draws(&font, c)))
            };
            self.fonts.with_face_data(*id, has).flatten() == Some(true)
        };
        let of_region = |id: &ID| {
            let families = self.fonts.face(*id).map(|face| &face.families);
            families.is_some_and(|all| all.iter().any(|(name, _)| name.ends_with(region.mark())))
        };
        let first = self.order.iter().copied().find(&has_all)?;
        let is_han = letters.iter().any(|c| ('\u{2e80}'..='\u{9fff}').contains(c));
        let regional = self.order.iter().copied().filter(of_region).find(|id| is_han && has_all(id));
        regional.or(Some(first))
    }
}

/// Upright sans-serif fonts of regular weight first; among equals by name, so that the choice is the same on every
/// machine that has them.
fn rank(face: &FaceInfo) -> (bool, u16, bool, bool, bool, String) {
    let name = face.families.first().map(|(name, _)| name.clone()).unwrap_or_default();
    let plain = name.contains("Sans") && !name.contains("UI") && !name.contains("Display");
    (
        face.style != Style::Normal,
        face.weight.0.abs_diff(400),
        face.stretch != Stretch::Normal,
        face.monospaced,
        !plain,
        name,
    )
}

/// Whether a font has something to show for a letter: some fonts have colours alone, in a form that is not read.
fn draws(font: &impl Outlines, letter: char) -> bool {
    let id = font.glyph_id(letter);
    id.0 != 0
        && (letter.is_whitespace()
            || font.outline(id).is_some()
            || font.glyph_raster_image2(id, u16::MAX).is_some())
}

impl Face {
    fn new(data: &[u8], index: u32) -> Option<Self> {
        let outlines = FontVec::try_from_vec_and_index(data.to_vec(), index).ok()?;
        let units_per_em = outlines.units_per_em()?;
        Some(Face { shaped: harfrust::Font::new(data.to_vec(), index)?, outlines, units_per_em })
    }

    /// The glyphs of a word in one script from left to right, and its width in em.
    pub fn shape(&self, word: &str, right_to_left: bool) -> (Vec<Placed>, f32) {
        let mut buffer = Buffer::new();
        buffer.push_str(word);
        buffer.guess_segment_properties();
        buffer.set_direction(if right_to_left { Direction::RightToLeft } else { Direction::LeftToRight });
        if shape(&ShaperFont::new(&self.shaped), &mut buffer, ShapeOptions::new()).is_err() {
            return (Vec::new(), 0.0);
        }
        let em = |units: i32| units as f32 / self.units_per_em;
        let (mut glyphs, mut x) = (Vec::new(), 0.0);
        for (info, position) in buffer.glyph_infos().iter().zip(buffer.glyph_positions()) {
            let id = GlyphId(info.glyph_id as u16);
            glyphs.push(Placed { id, x: x + em(position.x_offset), y: em(position.y_offset) });
            x += em(position.x_advance);
        }
        (glyphs, x)
    }
}
