//! What a demo flower is: six attributes, the words for them, and which combinations are held out.

/// Petal colour. The word is also the class-name word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Colour {
    /// Deep red.
    Red,
    /// Orange with a little red.
    Orange,
    /// Lemon yellow.
    Yellow,
    /// A warm white, on which the markings in white would not show.
    White,
    /// Light pink.
    Pink,
    /// Dark pink with some blue.
    Magenta,
    /// Between magenta and blue.
    Violet,
    /// Bright blue.
    Blue,
}

/// Petal shape, named by the flower it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlowerForm {
    /// Round, overlapping petals.
    Rosette,
    /// Petals that run to a sharp tip.
    Star,
    /// Narrow, strap-shaped petals with gaps between them.
    Daisy,
    /// Petals with a notched tip.
    Heart,
    /// Broad petals with a wavy rim.
    Ruffle,
    /// Petals curved to one side, each over the next.
    Pinwheel,
}

/// How a petal is coloured beyond its main colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Marking {
    /// One colour.
    Plain,
    /// A white rim.
    WhiteEdged,
    /// A white line along the middle of each petal.
    WhiteStriped,
    /// A dark base, fading outwards.
    DarkThroated,
}

/// Petals in a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Petals {
    /// Not for [`FlowerForm::Daisy`], whose petals are narrow.
    Five,
    /// For every form.
    Eight,
    /// For [`FlowerForm::Daisy`] only.
    Thirteen,
}

/// Rings of petals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rings {
    /// One ring at full length.
    Single,
    /// A ring of shorter petals on top of a full one, half a petal apart.
    Double,
}

/// Colour of the flower's centre.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Centre {
    /// Golden yellow.
    Yellow,
    /// Yellowish green.
    Green,
    /// Dark brown.
    Brown,
    /// Cream.
    White,
}

impl Colour {
    /// Every colour.
    pub const ALL: [Self; 8] = [
        Self::Red,
        Self::Orange,
        Self::Yellow,
        Self::White,
        Self::Pink,
        Self::Magenta,
        Self::Violet,
        Self::Blue,
    ];

    /// The word in names and captions.
    pub fn word(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Orange => "orange",
            Self::Yellow => "yellow",
            Self::White => "white",
            Self::Pink => "pink",
            Self::Magenta => "magenta",
            Self::Violet => "violet",
            Self::Blue => "blue",
        }
    }
}

impl FlowerForm {
    /// Every form.
    pub const ALL: [Self; 6] =
        [Self::Rosette, Self::Star, Self::Daisy, Self::Heart, Self::Ruffle, Self::Pinwheel];

    /// The word in names and captions.
    pub fn word(self) -> &'static str {
        match self {
            Self::Rosette => "rosette",
            Self::Star => "star",
            Self::Daisy => "daisy",
            Self::Heart => "heart",
            Self::Ruffle => "ruffle",
            Self::Pinwheel => "pinwheel",
        }
    }

    /// The petal counts this form is drawn with: thirteen needs narrow petals, five needs broad ones.
    pub(crate) fn petal_counts(self) -> [Petals; 2] {
        match self {
            Self::Daisy => [Petals::Eight, Petals::Thirteen],
            _ => [Petals::Five, Petals::Eight],
        }
    }
}

impl Marking {
    /// Every marking.
    pub const ALL: [Self; 4] = [Self::Plain, Self::WhiteEdged, Self::WhiteStriped, Self::DarkThroated];

    /// The word in names and captions; a plain petal goes without one.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::WhiteEdged => Some("white-edged"),
            Self::WhiteStriped => Some("white-striped"),
            Self::DarkThroated => Some("dark-throated"),
        }
    }

    /// Whether the marking can be seen on petals of this colour.
    fn shows_on(self, colour: Colour) -> bool {
        colour != Colour::White || matches!(self, Self::Plain | Self::DarkThroated)
    }
}

impl Petals {
    /// Every count.
    pub const ALL: [Self; 3] = [Self::Five, Self::Eight, Self::Thirteen];

    /// How many petals that is.
    pub fn count(self) -> usize {
        match self {
            Self::Five => 5,
            Self::Eight => 8,
            Self::Thirteen => 13,
        }
    }

    /// The word in names and captions.
    pub fn word(self) -> &'static str {
        match self {
            Self::Five => "five-petalled",
            Self::Eight => "eight-petalled",
            Self::Thirteen => "thirteen-petalled",
        }
    }
}

impl Rings {
    /// Every number of rings.
    pub const ALL: [Self; 2] = [Self::Single, Self::Double];

    /// The word in names and captions; a single flower goes without one.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::Single => None,
            Self::Double => Some("double"),
        }
    }
}

impl Centre {
    /// Every centre colour.
    pub const ALL: [Self; 4] = [Self::Yellow, Self::Green, Self::Brown, Self::White];

    /// The word in names and captions.
    pub fn word(self) -> &'static str {
        match self {
            Self::Yellow => "yellow",
            Self::Green => "green",
            Self::Brown => "brown",
            Self::White => "white",
        }
    }
}

/// One sort of flower: a combination of attributes. Not every combination can be drawn; [`all_kinds`] lists
/// those that can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowerKind {
    /// Rings of petals.
    pub rings: Rings,
    /// Petals in each ring.
    pub petals: Petals,
    /// Marking of the petals beside their colour.
    pub marking: Marking,
    /// Main colour of the petals.
    pub colour: Colour,
    /// Shape of the petals.
    pub form: FlowerForm,
    /// Colour of the middle.
    pub centre: Centre,
}

impl FlowerKind {
    /// The class name, made of the attribute words only:
    /// `"five-petalled white-edged violet star with a yellow centre"`.
    pub fn name(&self) -> String {
        let words = [
            self.rings.word(),
            Some(self.petals.word()),
            self.marking.word(),
            Some(self.colour.word()),
            Some(self.form.word()),
        ];
        let head: Vec<&str> = words.into_iter().flatten().collect();
        format!("{} with a {} centre", head.join(" "), self.centre.word())
    }
}

/// Every combination that can be drawn, in a fixed order.
pub fn all_kinds() -> Vec<FlowerKind> {
    let mut kinds = Vec::new();
    for rings in Rings::ALL {
        for form in FlowerForm::ALL {
            for petals in form.petal_counts() {
                for colour in Colour::ALL {
                    for marking in Marking::ALL.into_iter().filter(|marking| marking.shows_on(colour)) {
                        for centre in Centre::ALL {
                            kinds.push(FlowerKind { rings, petals, marking, colour, form, centre });
                        }
                    }
                }
            }
        }
    }
    kinds
}

/// The combinations the bundled model was pre-trained on: all but [`demo_classes`].
pub fn pretraining_kinds() -> Vec<FlowerKind> {
    let held_out = demo_classes();
    all_kinds().into_iter().filter(|kind| !held_out.contains(kind)).collect()
}

/// The twelve classes of the demo, in label order: four families of three. In the first three families only
/// the colour differs, and the colours are neighbours; in the last, only the form.
pub fn demo_classes() -> Vec<FlowerKind> {
    let daisy = FlowerKind {
        rings: Rings::Single,
        petals: Petals::Thirteen,
        marking: Marking::Plain,
        colour: Colour::White,
        form: FlowerForm::Daisy,
        centre: Centre::Brown,
    };
    let rosette = FlowerKind {
        rings: Rings::Single,
        petals: Petals::Five,
        marking: Marking::DarkThroated,
        colour: Colour::Violet,
        form: FlowerForm::Rosette,
        centre: Centre::Yellow,
    };
    let ruffle = FlowerKind {
        rings: Rings::Double,
        petals: Petals::Eight,
        marking: Marking::Plain,
        colour: Colour::Pink,
        form: FlowerForm::Ruffle,
        centre: Centre::Green,
    };
    let edged = FlowerKind { marking: Marking::WhiteEdged, form: FlowerForm::Star, ..rosette };
    vec![
        daisy,
        FlowerKind { colour: Colour::Yellow, ..daisy },
        FlowerKind { colour: Colour::Orange, ..daisy },
        rosette,
        FlowerKind { colour: Colour::Magenta, ..rosette },
        FlowerKind { colour: Colour::Blue, ..rosette },
        ruffle,
        FlowerKind { colour: Colour::Magenta, ..ruffle },
        FlowerKind { colour: Colour::Red, ..ruffle },
        edged,
        FlowerKind { form: FlowerForm::Pinwheel, ..edged },
        FlowerKind { form: FlowerForm::Heart, ..edged },
    ]
}
