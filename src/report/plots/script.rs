//! Texts in parts that are written with one font: their order on the line, and what has no font.

use std::ops::Range;
use unicode_bidi::{BidiInfo, Level};
use unicode_script::{Script, UnicodeScript};
use unicode_segmentation::UnicodeSegmentation;

/// A part of a text that is read in one direction.
pub struct Run {
    pub range: Range<usize>,
    pub right_to_left: bool,
}

/// The parts of a line of text from left to right.
pub fn runs(text: &str) -> Vec<Run> {
    let bidi = BidiInfo::new(text, Some(Level::ltr()));
    let Some(paragraph) = bidi.paragraphs.first() else { return Vec::new() };
    let (levels, runs) = bidi.visual_runs(paragraph, paragraph.range.clone());
    let run = |range: Range<usize>| Run { right_to_left: levels[range.start].is_rtl(), range };
    runs.into_iter().map(run).collect()
}

/// `name` so that it keeps its own direction inside a text.
pub fn isolated(name: &str) -> String {
    let is_read_from_the_right = BidiInfo::new(name, Some(Level::ltr())).has_rtl();
    if is_read_from_the_right { format!("\u{2068}{name}\u{2069}") } else { name.to_owned() }
}

/// Letters with their marks.
pub fn clusters(text: &str) -> impl Iterator<Item = &str> {
    text.graphemes(true)
}

/// Whether a letter shows nothing by itself: joiners, selectors of a form, marks of a direction.
pub fn is_invisible(letter: char) -> bool {
    matches!(letter,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// The script of a cluster; none where letters of any script use it.
pub fn script_of(cluster: &str) -> Option<Script> {
    let own = |script: &Script| !matches!(script, Script::Common | Script::Inherited | Script::Unknown);
    cluster.chars().map(|c| c.script()).find(own)
}

/// What a cluster's letters are called, and the Debian package with a font that has them.
pub fn help(cluster: &str) -> (&'static str, &'static str) {
    use Script::{Bopomofo, Han, Hangul, Hiragana, Katakana};
    match script_of(cluster) {
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

/// The letter that stands for another where it is read from the right.
pub fn mirrored(letter: char) -> char {
    const PAIRS: [(char, char); 6] = [('(', ')'), ('[', ']'), ('{', '}'), ('<', '>'), ('«', '»'), ('‹', '›')];
    let other = PAIRS.iter().find_map(|&(a, b)| match letter {
        c if c == a => Some(b),
        c if c == b => Some(a),
        _ => None,
    });
    other.unwrap_or(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_in_the_order_of_the_line() {
        let text = "a \u{5d0}\u{5d1} 12";
        let found: Vec<_> =
            runs(text).iter().map(|run| (&text[run.range.clone()], run.right_to_left)).collect();
        assert_eq!(found, [("a ", false), ("12", false), ("\u{5d0}\u{5d1} ", true)]);
        assert!(runs("").is_empty());
        assert_eq!(isolated("rose"), "rose");
        assert_eq!(isolated("\u{5d0} (b)"), "\u{2068}\u{5d0} (b)\u{2069}");
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
    }
}
