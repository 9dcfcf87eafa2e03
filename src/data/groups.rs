//! Photos that stay in one split because they show the same thing: a plant, a patient, a film.

use super::{DataError, table};
use fancy_regex::Regex;
use std::collections::HashMap;
use std::path::Path;

/// Which group a photo belongs to.
#[derive(Debug, Clone)]
pub enum Groups {
    /// By a file: groups by the paths of photos.
    Listed {
        /// The file, for messages.
        file: std::path::PathBuf,
        /// The group of each photo.
        of: HashMap<String, String>,
    },
    /// By a regular expression: what it finds in a path, its first group if it has one; photos that it does not match
    /// have no group.
    Found(Box<Regex>),
}

impl PartialEq for Groups {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Groups::Listed { of: a, .. }, Groups::Listed { of: b, .. }) => a == b,
            (Groups::Found(a), Groups::Found(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl Groups {
    /// Opens what `--groups` names: a file that is there, with columns path and group, or a regular expression.
    ///
    /// # Errors
    /// A file that cannot be used, an expression that is none.
    pub fn open(word: &str) -> Result<Groups, DataError> {
        let file = Path::new(word);
        let is_named = |ending: &&str| word.to_ascii_lowercase().ends_with(*ending);
        if file.is_dir()
            || !file.is_file() && [".csv", ".tsv", ".jsonl", ".json", ".txt"].iter().any(is_named)
        {
            return Err(DataError::Option {
                option: "--groups",
                problem: format!("{word}: no such file"),
                remedy: "give a table with the columns path and group, or a regular expression",
            });
        }
        if !file.is_file() {
            return match Regex::new(word) {
                Ok(regex) => Ok(Groups::Found(Box::new(regex))),
                Err(error) => Err(DataError::Option {
                    option: "--groups",
                    problem: format!("{word:?} is neither a file nor a regular expression ({error})"),
                    remedy: "give a table with the columns path and group, or an expression such as '^[^/]*/(plant[0-9]+)'",
                }),
            };
        }
        let table = table::read(file)?;
        let (path, group) = (table.column(&table::PATH), table.column(&table::GROUP));
        let (Some(path), Some(group)) = (path, group) else {
            return Err(table.wrong(format!("has the columns {}; it needs path and group", table.header())));
        };
        let mut of = HashMap::new();
        for row in table.rows() {
            let (path, group) = (row[path], row[group]);
            if let Some(other) = of.insert(path.replace('\\', "/"), group.to_owned())
                && other != group
            {
                return Err(table.wrong(format!("{path} is in the groups {other} and {group}")));
            }
        }
        Ok(Groups::Listed { file: file.to_path_buf(), of })
    }

    /// The group of the photo at `path`, which is relative to the data and has slashes.
    pub(super) fn of(&self, path: &str) -> Result<Option<String>, DataError> {
        match self {
            Groups::Listed { file, of } => {
                let name = path.rsplit('/').next().unwrap_or(path);
                let whole = of.get(path).or_else(|| of.get(&format!("./{path}")));
                match whole.or_else(|| of.get(name)) {
                    Some(group) => Ok(Some(group.clone()).filter(|group| !group.is_empty())),
                    None => Err(DataError::file(
                        file,
                        format!("has no group for {path}; list every photo, or leave its group empty"),
                    )),
                }
            }
            Groups::Found(regex) => {
                let found = regex.captures(path).map_err(|error| DataError::Option {
                    option: "--groups",
                    problem: format!("the expression takes too long on {path} ({error})"),
                    remedy: "make it simpler",
                })?;
                Ok(found.and_then(|found| found.get(1).or(found.get(0)).map(|part| part.as_str().to_owned())))
            }
        }
    }
}
