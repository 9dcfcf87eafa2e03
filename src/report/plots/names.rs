//! The names of classes in pictures: whole, in several lines where one has no room, and a number in a PNG where no
//! font has the letters.

use super::sheet::{LINE, Letters, Medium, Point, Sheet};
use super::typeface::{Typeface, isolated};

/// A name as it stands in a picture.
pub(crate) struct ClassName {
    lines: Vec<String>,
    /// For PNGs, where no font has the name.
    number: Option<String>,
}

impl ClassName {
    /// The names of all classes in lines of `width` at the most.
    pub fn all(font: &Typeface, names: &[String], size: f64, width: f64) -> Vec<Self> {
        let one = |(class, name): (usize, &String)| ClassName {
            lines: font.lines(name, size, width).iter().map(|line| isolated(line)).collect(),
            number: (!font.has(name)).then(|| format!("class {}", class + 1)),
        };
        names.iter().enumerate().map(one).collect()
    }

    /// The least width, of at least `least`, in which every name takes as many lines as fit into `height`.
    pub(crate) fn width_for(font: &Typeface, names: &[String], size: f64, height: f64, least: f64) -> f64 {
        let lines = ((height / (LINE * size)) as usize).max(1);
        let fits = |name: &String, width: f64| font.lines(name, size, width).len() <= lines;
        let needed = names.iter().map(|name| {
            let longest = font.width(name, size).ceil();
            let mut width = least.max(longest / lines as f64).min(longest);
            while width < longest && !fits(name, width) {
                width = (width + 10.0).min(longest);
            }
            width
        });
        needed.fold(0.0, f64::max)
    }

    /// Width of the longest line.
    pub fn width(&self, font: &Typeface, size: f64) -> f64 {
        self.lines.iter().chain(&self.number).map(|line| font.width(line, size)).fold(0.0, f64::max)
    }

    /// Height of all lines.
    pub fn height(&self, size: f64) -> f64 {
        self.lines.len() as f64 * LINE * size
    }

    /// Draws the lines with their middle at `at`.
    pub fn draw(&self, sheet: &mut Sheet<'_>, at: Point, letters: Letters) {
        let form = self.number.as_ref().map(|_| Medium::Svg);
        for (i, line) in self.lines.iter().enumerate() {
            let d = (i as f64 - (self.lines.len() - 1) as f64 / 2.0) * LINE * letters.size;
            let at = if letters.turned { (at.0 + d, at.1) } else { (at.0, at.1 + d) };
            sheet.label(line, at, letters, form);
        }
        if let Some(number) = &self.number {
            sheet.label(number, at, letters, Some(Medium::Png));
        }
    }
}
