//! A picture as SVG: what is drawn goes into the files, into report.html and, by resvg, into the PNGs.
//!
//! Colours stand in the attributes, for files, and as classes, by which the page has others where it is dark.

use super::typeface::{FAMILY, Typeface, escaped};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::Tree;
use std::fmt::Write;

/// From the top left corner, in points: 1/96 inch on screens.
pub(crate) type Point = (f64, f64);

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Colour {
    class: &'static str,
    code: &'static str,
    opacity: f64,
}

const fn colour(class: &'static str, code: &'static str) -> Colour {
    Colour { class, code, opacity: 1.0 }
}

/// Okabe and Ito's palette, which all kinds of colour vision tell apart, less its yellow, too light for lines.
pub(crate) const PALETTE: [Colour; 6] = [BLUE, ORANGE, GREEN, PURPLE, RED, SKY];
pub(crate) const BLUE: Colour = colour("blue", "#0072B2");
pub(crate) const ORANGE: Colour = colour("orange", "#E69F00");
pub(crate) const GREEN: Colour = colour("green", "#009E73");
pub(crate) const PURPLE: Colour = colour("purple", "#CC79A7");
pub(crate) const RED: Colour = colour("red", "#D55E00");
pub(crate) const SKY: Colour = colour("sky", "#56B4E9");
pub(crate) const GREY: Colour = colour("grey", "#A6A6A6");

pub(crate) const PAPER: Colour = colour("paper", "#FFFFFF");
pub(crate) const INK: Colour = colour("ink", "#222222");
/// Colours of secondary text, of frames and of grids.
pub(crate) const MUTED: Colour = colour("muted", "#5C5C5C");
pub(crate) const EDGE: Colour = colour("edge", "#9A9A9A");
pub(crate) const GRID: Colour = colour("grid", "#E8E8E8");

pub(crate) const TITLE_SIZE: f64 = 15.0;
pub(crate) const TEXT_SIZE: f64 = 11.0;
pub(crate) const SMALL_SIZE: f64 = 10.0;
/// Height of a line, in sizes of its letters.
pub(crate) const LINE: f64 = 1.2;
/// Half the height of DejaVu's x, in em.
const HALF_X: f64 = 0.2735;

impl Colour {
    /// The colour where it covers a share of what is below it.
    pub const fn faint(self, opacity: f64) -> Colour {
        Colour { opacity, ..self }
    }

    /// As the attribute `paint`, which is `fill` or `stroke`.
    fn attributes(self, paint: &str) -> String {
        let Colour { class, code, opacity } = self;
        let faint = if opacity < 1.0 { format!(" {paint}-opacity=\"{opacity:.2}\"") } else { String::new() };
        format!("class=\"{class}\" {paint}=\"{code}\"{faint}")
    }
}

/// Where a text's position is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// How a text is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Letters {
    pub size: f64,
    pub colour: Colour,
    pub anchor: Anchor,
    /// To be read from below.
    pub turned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    Png,
    Svg,
}

/// A length in at most two digits after the point.
fn short(length: f64) -> String {
    let text = format!("{length:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A picture in the making, or a part of one.
pub(crate) struct Sheet<'a> {
    pub width: f64,
    pub height: f64,
    pub font: &'a Typeface,
    /// A line each, with the form of the picture that has it; none for both.
    elements: Vec<(Option<Medium>, String)>,
}

impl<'a> Sheet<'a> {
    pub fn new(font: &'a Typeface, width: f64, height: f64) -> Self {
        Sheet { width: width.ceil(), height: height.ceil(), font, elements: Vec::new() }
    }

    fn push(&mut self, element: String) {
        self.elements.push((None, element));
    }

    pub fn line(&mut self, points: &[Point], width: f64, colour: Colour) {
        self.stroke(points, width, colour, "");
    }

    /// A straight line of dashes.
    pub(crate) fn dashes(&mut self, from: Point, to: Point, width: f64, colour: Colour) {
        self.stroke(&[from, to], width, colour, " stroke-dasharray=\"5 3.5\"");
    }

    fn stroke(&mut self, points: &[Point], width: f64, colour: Colour, dashes: &str) {
        if points.len() > 1 {
            let mut list = String::new();
            for (i, (x, y)) in points.iter().enumerate() {
                let _ = write!(list, "{}{},{}", if i == 0 { "" } else { " " }, short(*x), short(*y));
            }
            let (colour, width) = (colour.attributes("stroke"), short(width));
            self.push(format!(
                "<polyline points=\"{list}\" fill=\"none\" {colour} stroke-width=\"{width}\"{dashes}/>"
            ));
        }
    }

    pub(crate) fn area(&mut self, corner: Point, opposite: Point, colour: Colour) {
        // Neighbours without seams.
        let (rectangle, colour) = (rectangle(corner, opposite), colour.attributes("fill"));
        self.push(format!("<rect {rectangle} {colour} shape-rendering=\"crispEdges\"/>"));
    }

    pub(crate) fn disc(&mut self, (x, y): Point, radius: f64, colour: Colour) {
        let (x, y, radius) = (short(x), short(y), short(radius));
        self.push(format!("<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\" {}/>", colour.attributes("fill")));
    }

    /// An unseen rectangle that says `text` under the pointer. The page goes from one to the next by arrow keys,
    /// and begins at the one that is the `first`.
    pub fn spot(&mut self, text: &str, corner: Point, opposite: Point, first: bool) {
        let class = if first { "spot first" } else { "spot" };
        let (text, rectangle) = (escaped(text), rectangle(corner, opposite));
        self.push(format!(
            "<rect class=\"{class}\" {rectangle} fill=\"none\" pointer-events=\"all\"><title>{text}</title></rect>"
        ));
    }

    /// An unseen rectangle by which the page finds a place in the picture.
    pub fn field(&mut self, corner: Point, opposite: Point) {
        self.push(format!("<rect class=\"field\" {} fill=\"none\"/>", rectangle(corner, opposite)));
    }

    /// A number in the middle of the height that is given: digits are taller than an x.
    pub fn digits(&mut self, text: &str, (x, y): Point, size: f64, colour: Colour, anchor: Anchor) {
        self.text(text, (x, y + 0.09 * size), size, colour, anchor);
    }

    /// A text whose letters have half the height of their x at `at`.
    pub fn text(&mut self, text: &str, at: Point, size: f64, colour: Colour, anchor: Anchor) {
        self.label(text, at, Letters { size, colour, anchor, turned: false }, None);
    }

    /// A text that is read from below.
    pub(crate) fn turned_text(&mut self, text: &str, at: Point, size: f64, colour: Colour, anchor: Anchor) {
        self.label(text, at, Letters { size, colour, anchor, turned: true }, None);
    }

    /// A text in the `form` that has it, none for both.
    pub fn label(&mut self, text: &str, (x, y): Point, letters: Letters, form: Option<Medium>) {
        if text.is_empty() {
            return;
        }
        let Letters { size, colour, anchor, turned } = letters;
        let down = HALF_X * size;
        let (x, y) = if turned { (x + down, y) } else { (x, y + down) };
        let (x, y, size) = (short(x), short(y), short(size));
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let turn = if turned { format!(" transform=\"rotate(-90 {x} {y})\"") } else { String::new() };
        let colour = colour.attributes("fill");
        let element = |content: &str| {
            format!(
                "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" text-anchor=\"{anchor}\" {colour}{turn}>{content}</text>"
            )
        };
        match self.font.spans(text) {
            None => self.elements.push((form, element(&escaped(text)))),
            Some(spans) => {
                if form != Some(Medium::Png) {
                    self.elements.push((Some(Medium::Svg), element(&escaped(text))));
                }
                if form != Some(Medium::Svg) {
                    self.elements.push((Some(Medium::Png), element(&spans)));
                }
            }
        }
    }

    /// Puts another picture with its top left corner at `(x, y)`.
    pub fn place(&mut self, other: Sheet<'_>, (x, y): Point) {
        self.push(format!("<g transform=\"translate({} {})\">", short(x), short(y)));
        self.elements.extend(other.elements);
        self.push("</g>".to_owned());
    }

    /// The picture as PNG, two pixels to the point.
    ///
    /// # Errors
    /// A picture that is too large or cannot be rendered; the reason in words.
    pub fn png(&self) -> Result<Vec<u8>, String> {
        let tree =
            Tree::from_str(&self.written(Medium::Png), &self.font.options()).map_err(|e| e.to_string())?;
        let [width, height] = [self.width, self.height].map(|side| 2 * side as u32);
        let mut pixels = Pixmap::new(width, height).ok_or("it is too large")?;
        resvg::render(&tree, Transform::from_scale(2.0, 2.0), &mut pixels.as_mut());
        pixels.encode_png().map_err(|e| e.to_string())
    }

    /// The picture as SVG.
    pub fn svg(&self) -> String {
        self.written(Medium::Svg)
    }

    fn written(&self, form: Medium) -> String {
        let Sheet { width, height, .. } = self;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"{FAMILY}\" stroke-linejoin=\"round\" \
             xml:space=\"preserve\">\n"
        );
        for (_, element) in self.elements.iter().filter(|(only, _)| only.is_none_or(|only| only == form)) {
            svg.push_str(element);
            svg.push('\n');
        }
        svg + "</svg>\n"
    }
}

fn rectangle(corner: Point, opposite: Point) -> String {
    let [x, y] = [corner.0.min(opposite.0), corner.1.min(opposite.1)].map(short);
    let [width, height] = [(corner.0 - opposite.0).abs(), (corner.1 - opposite.1).abs()].map(short);
    format!("x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"")
}
