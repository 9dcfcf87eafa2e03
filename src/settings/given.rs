//! Settings from a file and from flags, put over those of a recipe.

use super::values::TextAlignment;
use super::{Given, Key, Recipe, Settings, TABLE, are_flowers, default_templates};
use crate::fetch::{settled_data, settled_model};
use std::path::Path;

impl Given {
    /// Iterates over the keys that are given, in the order of the table.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        TABLE.iter().filter(|setting| (setting.is_given)(self)).map(|setting| setting.key)
    }

    /// Whether there is nothing to train on.
    pub fn names_no_data(&self) -> bool {
        self.data.is_none() && self.demo != Some(true)
    }

    /// Writes everything that is given here over `settings`.
    pub fn apply(mut self, settings: &mut Settings) {
        if self.text_weight.is_some() {
            self.text_alignment.get_or_insert(TextAlignment::Always);
        }
        if self.epochs.is_some() {
            // Whichever of the two was named last.
            settings.steps_per_shot = None;
        }
        self.write_over(settings);
    }

    /// Leaves out what makes up the recipe `from` and, where the recipe `to` has another default, what was left
    /// at the default of `from`: config.toml holds both as if they had been chosen.
    fn forget_recipe(&mut self, from: Recipe, to: Recipe) {
        (self.method, self.with_lora, self.classifier) = (None, None, None);
        (self.mixup, self.triplet) = (None, None);
        let (from, to) = (Settings::of(from), Settings::of(to));
        if self.steps_per_shot.is_some() && self.steps_per_shot == from.steps_per_shot {
            // They were settled by it.
            (self.epochs, self.validate_every) = (None, None);
        }
        if to.steps_per_shot.is_some() && self.epochs == Some(from.epochs) {
            self.epochs = None;
        }
        self.forget_defaults(&from, &to);
    }
}

impl Settings {
    /// Recipe defaults, then the file, then the flags.
    pub fn combine(mut file: Given, flags: &Given) -> Self {
        let (before, written) = (file.recipe, file.templates.clone());
        let of_flowers = (file.data.is_some() || file.demo.is_some())
            .then(|| file.demo == Some(true) || file.data.as_deref().is_some_and(are_flowers));
        if let (Some(from), Some(to)) = (file.recipe, flags.recipe)
            && from != to
        {
            file.forget_recipe(from, to);
        }
        let recipe = flags.recipe.or(file.recipe).unwrap_or(Recipe::Lora);
        let mut settings = Settings::of(recipe);
        file.apply(&mut settings);
        flags.clone().apply(&mut settings);
        // config.toml holds the prompts as if they had been chosen.
        let flowers = settings.is_of_flowers();
        let usual = default_templates(before.unwrap_or(recipe), of_flowers.unwrap_or(flowers));
        if flags.templates.is_none() && written.is_none_or(|templates| templates == usual) {
            settings.templates = default_templates(recipe, flowers);
        }
        // config.toml must mean the same from any directory.
        settings.make_paths_absolute();
        settings.data = settings.data.as_deref().map(settled_data);
        settings.model = settings.model_name().or(settings.model.as_deref()).map(settled_model);
        settings.groups = settings.groups.map(|groups| {
            let file = Path::new(&groups).is_file().then(|| std::path::absolute(&groups).ok()).flatten();
            file.and_then(|file| file.into_os_string().into_string().ok()).unwrap_or(groups)
        });
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{AdapterRate, Patience, SettingError};

    fn resolve(file: Given, flags: Given) -> Result<Settings, SettingError> {
        let settings = Settings::combine(file, &flags);
        flags.check(&settings)?;
        Ok(settings)
    }

    /// The settings as config.toml holds them.
    fn file(settings: &Settings) -> Given {
        toml::from_str(&toml::to_string(settings).unwrap()).unwrap()
    }

    fn recipe(recipe: Recipe) -> Given {
        Given { recipe: Some(recipe), ..Given::default() }
    }

    /// A recipe on the demo, whose classes are flowers.
    fn on_flowers(recipe: Recipe) -> Settings {
        Settings { demo: true, templates: default_templates(recipe, true), ..Settings::of(recipe) }
    }

    #[test]
    fn another_recipe_than_the_file_has_brings_all_its_defaults() {
        for from in Recipe::ALL {
            for to in Recipe::ALL {
                let of = |recipe| Settings { epochs: 7, steps_per_shot: None, ..on_flowers(recipe) };
                let found = resolve(file(&of(from)), recipe(to)).unwrap();
                assert_eq!(found, of(to), "from {from} to {to}");
            }
        }
    }

    #[test]
    fn values_that_the_user_chose_stay_when_the_recipe_changes() {
        let chosen = Settings {
            rank: 4,
            early_stop: Patience::Epochs(5),
            lr_lora: AdapterRate::Of(3e-4),
            text_weight: 0.5,
            ..on_flowers(Recipe::Lora)
        };
        let expected = Settings {
            rank: 4,
            early_stop: Patience::Epochs(5),
            lr_lora: AdapterRate::Of(3e-4),
            text_weight: 0.5,
            ..on_flowers(Recipe::ClipLora)
        };
        assert_eq!(resolve(file(&chosen), recipe(Recipe::ClipLora)).unwrap(), expected);
        // Flags are chosen too, also where they are the old recipe's default.
        let flags = Given { rank: Some(8), ..recipe(Recipe::ClipLora) };
        assert_eq!(resolve(file(&chosen), flags).unwrap(), Settings { rank: 8, ..expected });
        // What a technique consists of does not outlive it.
        let mixed = Settings { mixup: 0.4, ..on_flowers(Recipe::Mixup) };
        let triplet = on_flowers(Recipe::Triplet);
        assert_eq!(resolve(file(&mixed), recipe(Recipe::Triplet)).unwrap(), triplet);
        // A file without a recipe holds what somebody wrote into it.
        let written: Given = toml::from_str("demo = true\nrank = 8\ntext-weight = 0.3").unwrap();
        let found = resolve(written, recipe(Recipe::ClipLora)).unwrap();
        let text_alignment = TextAlignment::Always;
        let expected = Settings { rank: 8, text_weight: 0.3, text_alignment, ..on_flowers(Recipe::ClipLora) };
        assert_eq!(found, expected);
        // A number of epochs takes the place of steps for each shot, and comes back as neither had been given.
        let settled = Settings { epochs: 350, ..on_flowers(Recipe::ClipLora) };
        assert_eq!(resolve(file(&settled), recipe(Recipe::Lora)).unwrap(), on_flowers(Recipe::Lora));
        let flags = Given { epochs: Some(9), ..Given::default() };
        let found = resolve(file(&settled), flags).unwrap();
        assert_eq!((found.epochs, found.steps_per_shot), (9, None));
    }

    #[test]
    fn prompts_are_of_flowers_where_the_classes_are() {
        let of = |options: Given| resolve(Given::default(), options).unwrap().templates;
        let data =
            |recipe, data: &str| Given { data: Some(data.into()), recipe: Some(recipe), ..Given::default() };
        assert_eq!(of(data(Recipe::Lora, "flowers102")), default_templates(Recipe::Lora, true));
        assert_eq!(of(data(Recipe::ClipLora, "flowers102")), ["a photo of a {}, a type of flower."]);
        assert_eq!(of(data(Recipe::ClipLora, "photos")), ["a photo of a {}."]);
        let neutral = of(data(Recipe::Lora, "photos"));
        assert!(neutral.iter().all(|prompt| !prompt.contains("flower") && !prompt.contains("otan")));
        let own = Given { templates: Some(vec!["a {}".into()]), ..data(Recipe::Lora, "flowers102") };
        assert_eq!(of(own.clone()), ["a {}"]);
        // From a file they stay too, unless they are what its recipe would have had.
        assert_eq!(resolve(own, recipe(Recipe::ClipLora)).unwrap().templates, ["a {}"]);
        let flowers = file(&on_flowers(Recipe::Lora));
        assert_eq!(resolve(flowers.clone(), own_flag("b {}")).unwrap().templates, ["b {}"]);
        // On other data they are what these would have had, unless somebody chose them.
        let there = Given { demo: Some(false), ..data(Recipe::Lora, "photos") };
        assert_eq!(resolve(flowers, there).unwrap().templates, neutral);
        let chosen =
            Given { templates: Some(default_templates(Recipe::Lora, true)), ..data(Recipe::Lora, "photos") };
        assert_eq!(
            resolve(chosen, Given::default()).unwrap().templates,
            default_templates(Recipe::Lora, true)
        );
    }

    fn own_flag(template: &str) -> Given {
        Given { templates: Some(vec![template.into()]), ..Given::default() }
    }

    #[test]
    fn names_that_are_no_folders_stay_as_they_are() {
        let options = |data: &str, model: &str| Given {
            data: Some(data.into()),
            model: Some(model.into()),
            ..Given::default()
        };
        let here = std::env::current_dir().unwrap();
        let names = |settings: Settings| (settings.data.unwrap(), settings.model.unwrap());
        let fetched = options("flowers102", "openai/clip@main");
        let expected = ("flowers102".into(), "openai/clip@main".into());
        assert_eq!(names(resolve(fetched.clone(), Given::default()).unwrap()), expected);
        assert_eq!(names(resolve(Given::default(), fetched).unwrap()), expected);
        let folders = resolve(Given::default(), options("photos", "assets/demo-clip")).unwrap();
        assert_eq!(names(folders), (here.join("photos"), here.join("assets/demo-clip")));
    }
}
