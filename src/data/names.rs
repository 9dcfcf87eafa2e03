//! The names of classes: as files give them, as people can read them, and what they were probably meant to be.

use super::{DataError, table};
use crate::words::readable;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Name of the file that courses and CoOp put beside the numbered folders of Flowers-102.
const BESIDE: &str = "cat_to_name.json";

/// The candidate that `name` was probably meant to be: the same but for case and what stands between words, or a
/// letter or two.
pub(crate) fn near_miss<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |name: &str| -> String {
        readable(name).to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect()
    };
    let own = plain(name);
    let distance = |candidate: &str| strsim::damerau_levenshtein(&own, &plain(candidate));
    let nearest = candidates.into_iter().map(|candidate| (distance(candidate), candidate)).min()?;
    let allowed = own.chars().count() / 4;
    (nearest.0 <= allowed.min(2)).then_some(nearest.1)
}

/// How a message goes on where a name was probably meant to be another.
pub(super) fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    near_miss(name, candidates).map_or_else(String::new, |near| format!(" (did you mean {near:?}?)"))
}

/// The names of classes whose folders are called `keys`, by the file that `--class-names` names, or by one that lies
/// in a folder `beside` the photos and has a name for each. The second is the file that was used.
///
/// # Errors
/// A file that cannot be read, that leaves a class out, or that gives two the same name.
pub(super) fn of_classes(
    keys: &[String],
    chosen: Option<&Path>,
    beside: &[&Path],
) -> Result<(Vec<String>, Option<PathBuf>), DataError> {
    let found = match chosen {
        Some(file) => Some((file.to_path_buf(), from_file(keys, file)?)),
        None => {
            beside.iter().map(|folder| folder.join(BESIDE)).find(|file| file.is_file()).and_then(|file| {
                // Nobody asked for it: one that is of other classes is not for these.
                let names = from_file(keys, &file).ok()?;
                Some((file, names))
            })
        }
    };
    let (file, names) = match found {
        Some((file, names)) => (Some(file), names),
        None => (None, keys.to_vec()),
    };
    let names: Vec<String> = names.iter().map(|name| readable(name.trim())).collect();
    let mut known: HashMap<&str, &str> = HashMap::new();
    for (name, key) in names.iter().zip(keys) {
        let other = known.insert(name, key);
        let problem = match other {
            _ if name.is_empty() => format!("the class {key:?} has no name"),
            Some(other) => format!("the classes {other:?} and {key:?} are both called {name:?}"),
            None => continue,
        };
        let path = file.unwrap_or_else(|| PathBuf::from(key));
        return Err(DataError::File { path, problem });
    }
    Ok((names, file))
}

/// A JSON object of names by folder, a JSON list in the order of the classes, or lines: in that order, or each a
/// folder's name and the class's.
fn from_file(keys: &[String], file: &Path) -> Result<Vec<String>, DataError> {
    let wrong = |problem: String| DataError::file(file, problem);
    let text = table::text_of_file(file)?;
    let in_order = |names: Vec<String>| {
        if names.len() != keys.len() {
            let by_folder = "give one for each, or a JSON object of names by folder";
            return Err(wrong(format!("has {} names for {} classes; {by_folder}", names.len(), keys.len())));
        }
        // The names of numbered folders stand in the order of the numbers.
        let mut order: Vec<usize> = (0..keys.len()).collect();
        if let Some(numbers) = keys.iter().map(|key| key.parse::<u64>().ok()).collect::<Option<Vec<_>>>() {
            order.sort_by_key(|&class| numbers[class]);
        }
        let mut in_order = vec![String::new(); keys.len()];
        order.into_iter().zip(names).for_each(|(class, name)| in_order[class] = name);
        // Other folders are named as their classes are, and a list that only orders them anew would swap these.
        let swapped = keys.iter().zip(&in_order).find(|(key, name)| *key != *name && keys.contains(name));
        match swapped {
            Some((key, name)) => Err(wrong(format!(
                "would call the class {key:?} {name:?}, which is another's folder; give a JSON object of names by folder"
            ))),
            None => Ok(in_order),
        }
    };
    let by_key = |names: BTreeMap<String, String>| -> Result<Vec<String>, DataError> {
        let names: BTreeMap<String, &String> =
            names.iter().map(|(key, name)| (readable(key), name)).collect();
        let name = |key: &String| match names.get(key) {
            Some(name) => Ok((*name).clone()),
            None => {
                let near = did_you_mean(key, names.keys().map(String::as_str));
                Err(wrong(format!("has no name for the class {key:?}{near}")))
            }
        };
        keys.iter().map(name).collect()
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => {
            let word = |(key, value): (String, Value)| match value {
                Value::String(name) => Ok((key, name)),
                other => Err(wrong(format!("{key:?} is {other}, and not a name"))),
            };
            return by_key(object.into_iter().map(word).collect::<Result<_, _>>()?);
        }
        Ok(Value::Array(list)) => {
            let word = |value: Value| match value {
                Value::String(name) => Ok(name),
                other => Err(wrong(format!("{other} is not a name"))),
            };
            return in_order(list.into_iter().map(word).collect::<Result<_, _>>()?);
        }
        _ if text.trim_start().starts_with(['{', '[']) => return Err(wrong("is no JSON".to_owned())),
        _ => {}
    }
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    // A class, what stands between, its name.
    let pair = |line: &&str| -> Option<(String, String)> {
        let key = keys.iter().filter(|key| line.trim_start_matches('"').starts_with(key.as_str()));
        let key = key.max_by_key(|key| key.len())?;
        let rest = line.trim_start_matches('"')[key.len()..].trim_start_matches('"');
        let name = rest.trim_start_matches([' ', '\t', ',', ':', ';', '=', '.', ')']);
        (name.len() < rest.len() && !name.is_empty())
            .then(|| (key.clone(), name.trim_matches('"').to_owned()))
    };
    let pairs: Vec<Option<(String, String)>> = lines.iter().map(pair).collect();
    if pairs.iter().all(Option::is_none) {
        return in_order(lines.into_iter().map(String::from).collect());
    }
    let named = pairs.iter().flatten().cloned().collect();
    match pairs.iter().position(Option::is_none) {
        Some(odd) if by_key(named).is_err() => {
            Err(wrong(format!("begins some lines with a class and others not, as {:?}", lines[odd])))
        }
        _ => by_key(pairs.into_iter().flatten().collect()),
    }
}

/// A warning where names are numbers or WordNet's, which no text encoder knows.
pub(super) fn doubts(names: &[String]) -> Option<String> {
    let number = |name: &&String| {
        name.starts_with(|c: char| c == '-' || c.is_ascii_digit()) && name.parse::<f64>().is_ok()
    };
    let wordnet = |name: &&String| {
        name.len() == 9 && name.starts_with('n') && name[1..].bytes().all(|byte| byte.is_ascii_digit())
    };
    let of = |what: &str, first: &String, count: usize| {
        format!(
            "{count} of {} class names are {what} ({first:?}), which CLIP's text encoder cannot read; --class-names FILE \
             gives the names",
            names.len()
        )
    };
    let count =
        |test: &dyn Fn(&&String) -> bool| (names.iter().filter(test).count(), names.iter().find(test));
    match (count(&number), count(&wordnet)) {
        ((n, Some(first)), _) => Some(of("numbers", first, n)),
        (_, (n, Some(first))) => Some(of("ids of WordNet", first, n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(keys: &[&str], text: &str) -> Result<Vec<String>, DataError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("names");
        std::fs::write(&file, text).unwrap();
        let keys: Vec<String> = keys.iter().map(|&key| key.into()).collect();
        of_classes(&keys, Some(&file), &[]).map(|(names, _)| names)
    }

    #[test]
    fn names_come_from_every_form_of_a_file() {
        let keys = ["1", "10", "2"];
        for text in [
            "{\"2\": \"lily\", \"1\": \"pink rose\", \"10\": \"aster\", \"3\": \"no folder\"}",
            "[\"pink rose\", \"lily\", \"aster\"]",
            "pink rose\r\nlily\r\n\r\naster\r\n",
            "1: pink rose\n10: aster\n2: lily\n",
            "\"1\";\"pink rose\"\n\"10\";\"aster\"\n\"2\";\"lily\"\n",
            "\u{feff}1 pink rose\n2\tlily\n10,aster\n",
        ] {
            assert_eq!(names(&keys, text).unwrap(), ["pink rose", "aster", "lily"], "{text}");
        }
        for (text, problem) in [
            ("{\"1\": \"rose\", \"2\": \"lily\"}", "no name for the class \"10\""),
            ("[\"rose\", \"lily\"]", "2 names for 3 classes"),
            ("rose\nrose\nlily", "both called \"rose\""),
            ("[\"rose\", \"\", \"lily\"]", "\"2\" has no name"),
            ("[\"rose\", 3, \"lily\"]", "3 is not a name"),
            ("1 rose\n2 lily\n3 aster\n", "begins some lines with a class and others not, as \"3 aster\""),
            ("1 rose\n2 lily\naster\n", "begins some lines with a class and others not, as \"aster\""),
            ("2\n10\n1\n", "would call the class \"1\" \"2\""),
            ("{\"1\": ", "no JSON"),
        ] {
            let message = names(&keys, text).unwrap_err().to_string();
            assert!(message.contains(problem), "{message}");
        }
    }

    #[test]
    fn near_misses_are_found_in_any_case() {
        let known = ["Red Rose", "tulip", "sunflower", "a"];
        for (name, near) in [
            ("red_rose", Some("Red Rose")),
            ("Tulips", Some("tulip")),
            ("sunflwoer", Some("sunflower")),
            ("lily", None),
            ("b", None),
        ] {
            assert_eq!(near_miss(name, known), near, "{name}");
        }
        assert_eq!(near_miss("x", []), None);
    }

    #[test]
    fn names_that_say_nothing_are_doubted() {
        let doubts = |names: &[&str]| doubts(&names.iter().map(|&name| name.into()).collect::<Vec<_>>());
        assert_eq!(doubts(&["rose", "route 66"]), None);
        assert!(doubts(&["rose", "0007"]).unwrap().starts_with("1 of 2 class names are numbers"));
        assert!(doubts(&["n01440764", "n01443537"]).unwrap().contains("WordNet"));
    }
}
