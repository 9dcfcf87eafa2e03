//! The sizes of a CLIP model, as its `config.json` gives them.
//!
//! A Hugging Face configuration may leave out whatever equals the defaults of `CLIPConfig`, and older
//! files carry each tower twice (`text_config` and `text_config_dict`). Both are resolved as
//! `transformers` resolves them, and every number is checked before anything is allocated from it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ClipError;
use crate::model_files::CONFIG;

pub use crate::backend::Activation;

/// The sizes of one transformer, vision or text.
#[derive(Debug, Clone, PartialEq)]
pub struct TowerConfig {
    /// Elements of a token.
    pub width: usize,
    /// Elements between the two linear layers of an MLP.
    pub mlp: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads; they divide `width`.
    pub heads: usize,
    /// The function between the two linear layers of an MLP.
    pub activation: Activation,
    /// ε, which layer norm adds to the variance.
    pub norm_eps: f64,
}

/// The image side.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// The transformer behind the patch embedding.
    pub tower: TowerConfig,
    /// Side of the square input, in pixels.
    pub image_size: usize,
    /// Side of a square patch, in pixels.
    pub patch_size: usize,
}

impl VisionConfig {
    /// Patches of one image. Pixels to the right and below the last whole patch are not looked at, as in
    /// a convolution without padding.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Tokens of one image: the class token and the patches.
    pub fn tokens(&self) -> usize {
        self.patches() + 1
    }
}

/// The text side.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// The transformer behind the token embedding.
    pub tower: TowerConfig,
    /// Rows of the token embedding.
    pub vocabulary: usize,
    /// Rows of the position embedding: the longest text, start and end tokens included.
    pub max_tokens: usize,
    /// Id of the start token. Old files carry a wrong one (0), which nothing depends on.
    pub bos: Option<u32>,
    /// Id of the end token, whose row is the text's feature. Old files carry [`TextConfig::LEGACY_EOS`].
    pub eos: u32,
}

impl TextConfig {
    /// A wrong end token that checkpoints converted before 2023 carry. `transformers` takes it to mean that
    /// the token with the largest id ends the text.
    pub const LEGACY_EOS: u32 = 2;

    /// The position of the token whose feature stands for a text: the first end token, or with the legacy
    /// end token in `config.json` the first of the largest ids, as in `transformers`. Padding comes later
    /// and cannot change it, being the end token itself.
    pub fn pooled_position(&self, ids: &[u32]) -> u32 {
        let end = match self.eos {
            TextConfig::LEGACY_EOS => ids.iter().copied().max().unwrap_or(self.eos),
            eos => eos,
        };
        ids.iter().position(|&id| id == end).unwrap_or(0) as u32
    }
}

/// The sizes of a whole CLIP model.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Sizes of the image side.
    pub vision: VisionConfig,
    /// Sizes of the text side.
    pub text: TextConfig,
    /// Elements of the features that both towers end in.
    pub projection: usize,
    /// Value of `logit_scale` before pre-training; the trained value is in the weights.
    pub logit_scale_init: f64,
}

impl ClipConfig {
    /// CLIP ViT-B/32 at 224 pixels, which is also what `transformers` assumes where a file is silent.
    pub fn vit_b_32() -> Self {
        let tower = |width, heads| TowerConfig {
            width,
            mlp: 4 * width,
            layers: 12,
            heads,
            activation: Activation::QuickGelu,
            norm_eps: 1e-5,
        };
        ClipConfig {
            vision: VisionConfig { tower: tower(768, 12), image_size: 224, patch_size: 32 },
            text: TextConfig {
                tower: tower(512, 8),
                vocabulary: 49_408,
                max_tokens: 77,
                bos: Some(49_406),
                eos: 49_407,
            },
            projection: 512,
            logit_scale_init: 2.6592,
        }
    }

    /// Reads `config.json` in `dir`.
    pub fn load(dir: &Path) -> Result<Self, ClipError> {
        let path = dir.join(CONFIG);
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ClipError::Read { path: path.clone(), source })?;
        Self::parse(&text, &path)
    }

    /// Reads the text of a `config.json`; `path` is what errors name.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ClipError> {
        let json = |problem| ClipError::Json { path: path.to_path_buf(), problem };
        let root: Value = serde_json::from_str(text).map_err(|e| json(e.to_string()))?;
        let root = root.as_object().ok_or_else(|| json("not a JSON object".into()))?;
        let root = Section { path, name: "", values: Some(root) };
        root.expect_clip()?;
        let defaults = Self::vit_b_32();
        Ok(ClipConfig {
            vision: vision(&root.tower("vision_config", "vision_config_dict")?, &defaults.vision)?,
            text: text_side(&root.tower("text_config", "text_config_dict")?, &defaults.text)?,
            projection: root.size("projection_dim", defaults.projection, limit::WIDTH)?,
            logit_scale_init: root.number("logit_scale_init_value", defaults.logit_scale_init)?,
        })
    }
}

/// Upper bounds, far above any published model, so that no product of sizes overflows and a damaged file
/// is named before memory is asked for.
mod limit {
    pub const WIDTH: usize = 16_384;
    pub const MLP: usize = 131_072;
    pub const LAYERS: usize = 512;
    pub const PIXELS: usize = 16_384;
    pub const PATCHES: usize = 65_536;
    pub const VOCABULARY: usize = 4_194_304;
    pub const TEXT_TOKENS: usize = 65_536;
}

fn vision(section: &Section<'_>, default: &VisionConfig) -> Result<VisionConfig, ClipError> {
    let vision = VisionConfig {
        tower: tower(section, &default.tower)?,
        image_size: section.square("image_size", default.image_size)?,
        patch_size: section.square("patch_size", default.patch_size)?,
    };
    if section.size("num_channels", 3, 3)? != 3 {
        return Err(section.error("num_channels", "is not 3: only RGB models are supported"));
    }
    if vision.patch_size > vision.image_size {
        let problem = format!("is {}, larger than image_size {}", vision.patch_size, vision.image_size);
        return Err(section.error("patch_size", problem));
    }
    if vision.patches() > limit::PATCHES {
        let problem = format!("is {}, which makes {} patches", vision.patch_size, vision.patches());
        return Err(section.error("patch_size", format!("{problem}; at most {} work", limit::PATCHES)));
    }
    Ok(vision)
}

fn text_side(section: &Section<'_>, default: &TextConfig) -> Result<TextConfig, ClipError> {
    let text = TextConfig {
        tower: tower(section, &default.tower)?,
        vocabulary: section.size("vocab_size", default.vocabulary, limit::VOCABULARY)?,
        max_tokens: section.size("max_position_embeddings", default.max_tokens, limit::TEXT_TOKENS)?,
        bos: section.token("bos_token_id", default.bos)?,
        eos: section
            .token("eos_token_id", Some(default.eos))?
            .ok_or_else(|| section.error("eos_token_id", "is null; give the id of the end token"))?,
    };
    if text.max_tokens < 3 {
        return Err(section.error("max_position_embeddings", "leaves no room between start and end token"));
    }
    if text.eos as usize >= text.vocabulary {
        let problem = format!("is {}, outside a vocabulary of vocab_size {}", text.eos, text.vocabulary);
        return Err(section.error("eos_token_id", problem));
    }
    Ok(text)
}

fn tower(section: &Section<'_>, default: &TowerConfig) -> Result<TowerConfig, ClipError> {
    let tower = TowerConfig {
        width: section.size("hidden_size", default.width, limit::WIDTH)?,
        mlp: section.size("intermediate_size", default.mlp, limit::MLP)?,
        layers: section.size("num_hidden_layers", default.layers, limit::LAYERS)?,
        heads: section.size("num_attention_heads", default.heads, limit::WIDTH)?,
        activation: section.activation("hidden_act", default.activation)?,
        norm_eps: section.number("layer_norm_eps", default.norm_eps)?,
    };
    if !tower.width.is_multiple_of(tower.heads) {
        let problem = format!("is {}, which does not divide hidden_size {}", tower.heads, tower.width);
        return Err(section.error("num_attention_heads", problem));
    }
    // It is added in f32.
    if tower.norm_eps as f32 <= 0.0 || tower.norm_eps > 1.0 {
        let problem = format!("is {}; a number above 0, up to 1, is needed (CLIP uses 1e-5)", tower.norm_eps);
        return Err(section.error("layer_norm_eps", problem));
    }
    Ok(tower)
}

/// One JSON object of the file; absent values read as the default.
struct Section<'a> {
    path: &'a Path,
    /// Key of the object in the file, empty for the file itself.
    name: &'static str,
    values: Option<&'a Map<String, Value>>,
}

impl<'a> Section<'a> {
    fn error(&self, key: &str, problem: impl Into<String>) -> ClipError {
        let key = if self.name.is_empty() { key.to_string() } else { format!("{}.{key}", self.name) };
        ClipError::Config { path: PathBuf::from(self.path), key, problem: problem.into() }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.values.and_then(|values| values.get(key))
    }

    fn expect_clip(&self) -> Result<(), ClipError> {
        match self.get("model_type") {
            Some(Value::String(kind)) if kind == "clip" => Ok(()),
            Some(kind) => {
                Err(self
                    .error("model_type", format!("is {kind}; only whole CLIP checkpoints (\"clip\") work")))
            }
            None => Err(self.error("model_type", "is missing; a CLIP checkpoint says \"clip\" here")),
        }
    }

    /// The object of one tower. Where the legacy key is present it replaces the current one, defaults
    /// included, because `transformers` fills it with defaults before merging it over the other.
    fn tower(&self, current: &'static str, legacy: &'static str) -> Result<Section<'a>, ClipError> {
        for name in [legacy, current] {
            match self.get(name) {
                None | Some(Value::Null) => {}
                Some(Value::Object(values)) => {
                    return Ok(Section { path: self.path, name, values: Some(values) });
                }
                Some(_) => return Err(self.error(name, "is not an object; fetch config.json again")),
            }
        }
        Ok(Section { path: self.path, name: current, values: None })
    }

    /// A whole number in 1..=`most`.
    fn size(&self, key: &str, default: usize, most: usize) -> Result<usize, ClipError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => self.checked_size(key, value, most),
        }
    }

    fn checked_size(&self, key: &str, value: &Value, most: usize) -> Result<usize, ClipError> {
        let size = value.as_u64().and_then(|v| usize::try_from(v).ok());
        size.filter(|v| (1..=most).contains(v))
            .ok_or_else(|| self.error(key, format!("is {value}; a whole number from 1 to {most} is needed")))
    }

    /// The side of a square, given as one number or as two equal ones.
    fn square(&self, key: &str, default: usize) -> Result<usize, ClipError> {
        match self.get(key) {
            Some(Value::Array(sides)) => match sides.as_slice() {
                [a, b] if a == b => self.checked_size(key, a, limit::PIXELS),
                _ => Err(self.error(key, "is not a square; only square images and patches are supported")),
            },
            _ => self.size(key, default, limit::PIXELS),
        }
    }

    /// A finite number.
    fn number(&self, key: &str, default: f64) -> Result<f64, ClipError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let number = value.as_f64().filter(|v| v.is_finite());
        number.ok_or_else(|| self.error(key, format!("is {value}; a number is needed")))
    }

    /// A token id, or null.
    fn token(&self, key: &str, default: Option<u32>) -> Result<Option<u32>, ClipError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().and_then(|v| u32::try_from(v).ok()) {
                Some(id) => Ok(Some(id)),
                None => Err(self.error(key, format!("is {value}; one token id is needed"))),
            },
        }
    }

    fn activation(&self, key: &str, default: Activation) -> Result<Activation, ClipError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::String(name)) if name == "quick_gelu" => Ok(Activation::QuickGelu),
            Some(Value::String(name)) if name == "gelu" => Ok(Activation::Gelu),
            Some(value) => Err(self.error(key, format!("is {value}; quick_gelu and gelu are supported"))),
        }
    }
}
