//! Words from elsewhere, fit for a message.

use unicode_normalization::UnicodeNormalization;

/// Message of a library, which may take several lines, on one.
pub(crate) fn one_line(error: &impl std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A name in Unicode's composed form, whichever one the file system has it in, without what a terminal would obey.
pub(crate) fn readable(name: &str) -> String {
    let shown = |c: &char| {
        !c.is_control()
            && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    name.nfc().filter(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_form_of_unicode_without_commands_to_a_terminal() {
        assert_eq!(readable("cafe\u{301} \u{1b}[31mred\u{202e}\n"), "café [31mred");
    }
}
