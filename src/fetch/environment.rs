//! What the environment says of the hub, by the names and rules of Hugging Face's own tools.

use super::{FetchError, Result};
use crate::files::user_caches;
use std::ffi::OsString;
use std::path::PathBuf;

const ENDPOINT: &str = "https://huggingface.co";

/// Values that switch something on, in any case.
const YES: [&str; 4] = ["1", "ON", "YES", "TRUE"];

/// The secret that opens private models, and where it was found.
pub(super) struct Token {
    pub secret: String,
    pub place: String,
}

pub(super) struct Environment {
    pub endpoint: String,
    /// The folder of the models.
    pub cache: PathBuf,
    pub token: Option<Token>,
    /// HF_HUB_DISABLE_IMPLICIT_TOKEN.
    pub no_token: bool,
    /// The variable that forbids the network, if one does.
    pub offline: Option<&'static str>,
    /// HF_HUB_DISABLE_SYMLINKS.
    pub no_links: bool,
}

impl Environment {
    /// Asks `get` for each variable; an empty one is none.
    pub fn read(get: impl Fn(&str) -> Option<OsString>) -> Result<Environment> {
        let variable = |name: &str| get(name).filter(|value| !value.is_empty());
        let text = |name: &str| variable(name).map(|value| value.to_string_lossy().trim().to_owned());
        let is_on = |name: &str| text(name).is_some_and(|value| YES.contains(&value.to_uppercase().as_str()));
        let path =
            |name: &str| variable(name).map(|value| expanded(value, |name| get(name)?.into_string().ok()));
        let home = path("HF_HOME").or_else(|| user_caches(path).map(|caches| caches.join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| home.as_ref().map(|home| home.join("hub")));
        let token_file = path("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token")));
        let no_token = is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN");
        // The first that is set decides, also if it says no.
        let offline =
            ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| variable(name).is_some());
        Ok(Environment {
            endpoint: endpoint(text("HF_ENDPOINT"))?,
            cache: cache.ok_or(FetchError::NoHubCache)?,
            token: if no_token { None } else { token(text, token_file) },
            no_token,
            offline: offline.filter(|name| is_on(name)),
            no_links: is_on("HF_HUB_DISABLE_SYMLINKS"),
        })
    }
}

fn endpoint(given: Option<String>) -> Result<String> {
    match given {
        Some(value) if !value.starts_with("http://") && !value.starts_with("https://") => {
            let problem = "not an http or https address; correct or unset it";
            Err(FetchError::Variable { name: "HF_ENDPOINT", value, problem })
        }
        Some(value) => Ok(value.trim_end_matches('/').to_owned()),
        None => Ok(ENDPOINT.to_owned()),
    }
}

fn token(text: impl Fn(&str) -> Option<String>, file: Option<PathBuf>) -> Option<Token> {
    let token = |secret: String, place: String| (!secret.is_empty()).then_some(Token { secret, place });
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(secret) = text(name) {
            return token(secret, name.to_owned());
        }
    }
    let file = file?;
    let secret = std::fs::read_to_string(&file).ok()?;
    token(secret.trim().to_owned(), file.display().to_string())
}

/// With `~` at the start for the home folder, and `$NAME` or `${NAME}` for a variable; a name that has no
/// value stays as it is.
fn expanded(value: OsString, variable: impl Fn(&str) -> Option<String>) -> PathBuf {
    let text = match value.into_string() {
        Ok(text) => text,
        Err(value) => return value.into(),
    };
    let behind = text.strip_prefix('~').filter(|behind| behind.is_empty() || behind.starts_with('/'));
    let text = match behind.zip(variable("HOME")) {
        Some((behind, home)) => format!("{}{behind}", home.trim_end_matches('/')),
        None => text,
    };
    let (mut path, mut rest) = (String::new(), text.as_str());
    while let Some((before, after)) = rest.split_once('$') {
        path += before;
        match name_at(after).and_then(|(name, behind)| Some((variable(name)?, behind))) {
            Some((value, behind)) => (path, rest) = (path + &value, behind),
            None => (path, rest) = (path + "$", after),
        }
    }
    PathBuf::from(path + rest)
}

/// The name of a variable behind a `$`, and what follows it.
fn name_at(text: &str) -> Option<(&str, &str)> {
    if let Some(braced) = text.strip_prefix('{') {
        return braced.split_once('}');
    }
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Environment {
        let get =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Environment::read(get).unwrap()
    }

    /// As Python's `expandvars(expanduser(path))`.
    #[test]
    fn names_in_paths_stand_for_their_values() {
        for (given, cache) in [
            ("~", "/home/me"),
            ("~/models", "/home/me/models"),
            ("~other/models", "~other/models"),
            ("/data/~", "/data/~"),
            ("$SCRATCH/models", "/scratch/7/models"),
            ("${SCRATCH}models$USER", "/scratch/7modelsme"),
            ("/a/$NOTHING/${NOTHING}/$/$-", "/a/$NOTHING/${NOTHING}/$/$-"),
            ("$TWICE", "$USER"),
            ("${open", "${open"),
        ] {
            let variables =
                [("HOME", "/home/me/"), ("SCRATCH", "/scratch/7"), ("USER", "me"), ("TWICE", "$USER")];
            let with = |name| of(&[&variables[..], &[(name, given)]].concat()).cache;
            assert_eq!(with("HF_HUB_CACHE"), PathBuf::from(cache), "{given}");
            assert_eq!(with("HUGGINGFACE_HUB_CACHE"), PathBuf::from(cache), "{given}");
            assert_eq!(with("HF_HOME"), PathBuf::from(cache).join("hub"), "{given}");
        }
    }

    #[test]
    fn the_newer_names_win() {
        let home = ("HOME", "/h");
        assert_eq!(of(&[home]).cache, PathBuf::from("/h/.cache/huggingface/hub"));
        let old = ("HUGGINGFACE_HUB_CACHE", "/old");
        assert_eq!(of(&[home, ("HF_HOME", "/hf"), old]).cache, PathBuf::from("/old"));
        assert_eq!(of(&[home, ("HF_HUB_CACHE", "/new"), old]).cache, PathBuf::from("/new"));
        let old = ("HUGGING_FACE_HUB_TOKEN", "old");
        let token = |variables: &[(&str, &str)]| of(variables).token.map(|token| (token.secret, token.place));
        assert_eq!(token(&[home, old]), Some(("old".into(), "HUGGING_FACE_HUB_TOKEN".into())));
        assert_eq!(token(&[home, old, ("HF_TOKEN", " new\n")]), Some(("new".into(), "HF_TOKEN".into())));
        assert_eq!(token(&[home, old, ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "yes")]), None);
        let old = ("TRANSFORMERS_OFFLINE", "1");
        assert_eq!(of(&[home]).offline, None);
        assert_eq!(of(&[home, old]).offline, Some("TRANSFORMERS_OFFLINE"));
        assert_eq!(of(&[home, old, ("HF_HUB_OFFLINE", "0")]).offline, None);
        assert_eq!(of(&[home, ("HF_HUB_OFFLINE", "on")]).offline, Some("HF_HUB_OFFLINE"));
    }
}
