//! The model card of an export: what it is, what it was trained on, how good it is, how to use it in Python.

use super::LABELS;
use super::folder::MARK;
use super::onnx::file::{DATA, MODEL};
use super::onnx::{OPSET, OnnxInput};
use crate::data::Preprocess;
use crate::data::decode::Orientation;
use crate::data::preprocess::Resize;
use crate::settings::{ClassifierKind, Settings};
use crate::train::base_model::BaseModel;
use crate::train::metrics::EvalMetrics;
use crate::train::records::{Summary, Temperature};
use crate::tune::{LoraSpec, PromptSharing, Tower};
use std::fmt::Write;
use std::path::Path;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExportKind {
    Peft,
    Merged,
    Onnx(OnnxInput),
}

pub(super) struct Card<'a> {
    pub form: ExportKind,
    pub settings: &'a Settings,
    pub preprocess: &'a Preprocess,
    /// Without a path of this machine.
    pub base: BaseModel,
    pub class_names: &'a [String],
    pub adapter: Option<&'a LoraSpec>,
    pub summary: Option<&'a Summary>,
}

impl Card<'_> {
    /// README.md.
    pub fn text(&self) -> String {
        [self.front_matter(), self.description(), self.data(), self.results(), self.usage()].concat()
    }

    /// YAML that the hub and other programs read. A task is named only where transformers' pipeline of it gives what
    /// this model is: that of image classification would put a head of its own, at random, in the place of the head
    /// here.
    fn front_matter(&self) -> String {
        let mut tags = vec!["- clip", MARK];
        if self.adapter.is_some() {
            tags.push("- lora");
        }
        let (library, task) = match (self.form, self.adapter) {
            (ExportKind::Merged, _) => ("transformers", "pipeline_tag: zero-shot-image-classification\n"),
            (ExportKind::Onnx(_), _) => ("onnx", ""),
            (ExportKind::Peft, Some(_)) => ("peft", ""),
            (ExportKind::Peft, None) => ("clip-engine", ""),
        };
        let base = self.base.on_hub().map_or(String::new(), |(id, _)| format!("base_model: {id}\n"));
        format!(
            "---\nlibrary_name: {library}\n{task}{base}tags:\n{}\n\
             # license: to be filled in; it depends on those of the base model and of the photos\n---\n\n",
            tags.join("\n")
        )
    }

    fn description(&self) -> String {
        let what = match (self.form, self.adapter, self.settings.prompt_spec()) {
            (ExportKind::Onnx(_), ..) => &self.onnx_description() as &str,
            (ExportKind::Merged, Some(_), _) => {
                "CLIP with low-rank adapters merged into its weights, and a linear head"
            }
            (ExportKind::Merged, None, _) => "Plain CLIP and a linear head that was trained on its features",
            (ExportKind::Peft, Some(_), Some(_)) => "Low-rank adapters, prompts and a linear head for CLIP",
            (ExportKind::Peft, Some(_), None) => {
                "Low-rank adapters in PEFT's format and a linear head for CLIP"
            }
            (ExportKind::Peft, None, Some(_)) => "Prompts and a linear head for CLIP",
            (ExportKind::Peft, None, None) => "A linear head for plain CLIP",
        };
        let by_text = match self.settings.classifier {
            ClassifierKind::Head => "",
            ClassifierKind::Text => {
                "The head was not trained: it is the text features of the classes, scaled as CLIP scales them. "
            }
        };
        let mut text = format!(
            "# CLIP fine-tuned on {}\n\n{what}. {by_text}Trained with clip-engine {}.\n\n| | |\n|---|---|\n",
            self.data_name(),
            env!("CARGO_PKG_VERSION"),
        );
        let mut row = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {name} | {value} |");
        };
        let name = format!("`{}`", plain(&self.base.name()));
        row(
            "base model",
            self.revision().map_or(name.clone(), |revision| format!("{name}, revision `{revision}`")),
        );
        row("recipe", self.settings.recipe.to_string());
        if let Some(spec) = self.adapter {
            let targets: Vec<&str> = spec.targets.iter().map(|target| target.name()).collect();
            let towers: Vec<&str> = spec.towers.iter().map(|tower| tower.name()).collect();
            let kind = if spec.rslora { ", rank-stabilised" } else { "" };
            row("adapters", format!("rank {}, alpha {}{kind}", spec.rank, spec.alpha));
            row(
                "adapted layers",
                format!("{} of the {} tower", targets.join(", "), towers.join(" and the ")),
            );
        }
        if let Some(prompts) = self.settings.prompt_spec() {
            let sharing = match prompts.sharing {
                PromptSharing::Shared => "the same in every block",
                PromptSharing::PerLayer => "each block its own",
            };
            row("prompts", format!("{}, {sharing}, mode {}", prompts.count, prompts.mode.name()));
        }
        if let Some(summary) = self.summary {
            row("trained parameters", summary.trained_parameters.to_string());
            row("epochs", format!("{}, of which number {} was kept", summary.epochs, summary.best_epoch));
        }
        text + "\n"
    }

    fn onnx_description(&self) -> String {
        let merged = self.adapter.is_some_and(|spec| spec.towers.contains(&Tower::Vision));
        let with = match (merged, self.settings.prompt_spec().is_some()) {
            (true, true) => {
                " with low-rank adapters merged into its weights and prompts in front of its blocks,"
            }
            (true, false) => " with low-rank adapters merged into its weights,",
            (false, true) => " with prompts in front of its blocks,",
            (false, false) => ", as it is,",
        };
        format!("An ONNX model: CLIP's vision tower{with} and a linear head")
    }

    fn data(&self) -> String {
        let shots =
            self.settings.shots.map_or(String::new(), |shots| format!(", {shots} training images each"));
        // A name cannot end the block: JSON keeps it on one line.
        let names = serde_json::json!(self.class_names);
        format!(
            "## Data\n\nPhotos: {}, {} classes{shots}.\n\n```json\n{names}\n```\n\n",
            self.data_name(),
            self.class_names.len(),
        )
    }

    fn results(&self) -> String {
        let Some(summary) = self.summary else {
            return "## Results\n\nThe run was exported before it was tested.\n\n".into();
        };
        let mut text = String::from(
            "## Results\n\n| split | images | top-1 | top-5 | macro F1 | text top-1 |\n|---|---:|---:|---:|---:|---:|\n",
        );
        let splits = [("validation", Some(&summary.val)), ("test", summary.test.as_ref())];
        for (name, metrics) in splits.into_iter().filter_map(|(name, metrics)| Some((name, metrics?))) {
            text += &result_row(name, metrics);
        }
        if let Some(Temperature { value, before, after, .. }) = &summary.temperature {
            text += &format!(
                "\nProbabilities are softmax(logits / {value:.3}); the temperature was fitted on the validation split. On the \
                 {} split it takes the negative log-likelihood from {:.3} to {:.3} and the expected calibration error from \
                 {} to {}.\n",
                summary.zero_shot.split,
                before.nll,
                after.nll,
                percent(before.ece),
                percent(after.ece),
            );
        }
        let plain = &summary.zero_shot;
        let (top1, images) = (percent(plain.top1), plain.images);
        text + &format!(
            "\nPlain CLIP by its text features, on the same data: {top1} top-1 on the {} split's {images} images. \
             The best epoch was chosen on the validation split.\n\n",
            plain.split
        )
    }

    fn usage(&self) -> String {
        if let ExportKind::Onnx(input) = self.form {
            return self.onnx_usage(input);
        }
        let mut text = String::from("## Use in Python\n\n");
        if self.settings.prompt_spec().is_some() {
            return text
                + "Neither transformers nor PEFT has a place for prompts in the vision tower. \
                   `engine predict` and `engine embed` use them; docs/python.md of clip-engine has the lines of \
                   Python that put prompts.safetensors in front of every block.\n";
        }
        let base = self.revision().map_or("base".into(), |revision| format!("base, revision=\"{revision}\""));
        text += "`folder` is this folder, `photo` the path of a photo";
        text += match self.form {
            ExportKind::Peft => ", `base` the base model: its name on the hub, or its folder.\n\n```python\n",
            _ => ".\n\n```python\n",
        };
        text += "import json\n\nimport torch\n";
        if self.form == ExportKind::Peft && self.adapter.is_some() {
            text += "from peft import PeftModel\n";
        }
        let (import, opened) = self.opening();
        text += &format!(
            "from PIL import {import}\nfrom safetensors import safe_open\n\
             from transformers import CLIPImageProcessor, CLIPModel\n\n"
        );
        text += &match (self.form, self.adapter) {
            (ExportKind::Peft, Some(_)) => format!(
                "model = CLIPModel.from_pretrained({base}).float()\n\
                 model = PeftModel.from_pretrained(model, f\"{{folder}}/adapter\").eval()\n\
                 processor = CLIPImageProcessor.from_pretrained({base})\n"
            ),
            (ExportKind::Peft, None) => format!(
                "model = CLIPModel.from_pretrained({base}).float().eval()\n\
                 processor = CLIPImageProcessor.from_pretrained({base})\n"
            ),
            _ => "model = CLIPModel.from_pretrained(folder).eval()\n\
                                  processor = CLIPImageProcessor.from_pretrained(folder)\n"
                .into(),
        };
        text + READ_HEAD + &opened + CLASSIFY
    }

    /// What Python imports of Pillow, and its lines that open a photo as the engine does.
    fn opening(&self) -> (&'static str, String) {
        let (import, opened) = match self.preprocess.orientation() {
            Orientation::Exif => ("Image, ImageOps", "ImageOps.exif_transpose(Image.open(photo))"),
            Orientation::Ignore => ("Image", "Image.open(photo)"),
        };
        let lines = format!(
            "image = {opened}.convert(\"RGBA\")\n\
             image = Image.alpha_composite(Image.new(\"RGBA\", image.size, \"white\"), image).convert(\"RGB\")\n"
        );
        (import, lines)
    }

    fn onnx_usage(&self, input: OnnxInput) -> String {
        let (preprocess, side) = (self.preprocess, self.preprocess.image_size());
        let (mean, std) = (preprocess.mean(), preprocess.std());
        let (name, kind, what) = match input {
            OnnxInput::Pixels => {
                ("pixels", format!("uint8 [N, {side}, {side}, 3]"), "RGB of the cropped photos".to_string())
            }
            OnnxInput::Normalised => (
                "pixel_values",
                format!("float32 [N, 3, {side}, {side}]"),
                format!("(RGB / 255 - mean) / std of the cropped photos, mean {mean:?}, std {std:?}"),
            ),
        };
        let turned = match preprocess.orientation() {
            Orientation::Exif => "turned upright as EXIF says",
            Orientation::Ignore => "taken as they are stored, whatever EXIF says",
        };
        let (import, opened) = self.opening();
        let sized = match preprocess.resize() {
            Resize::ShortSide(side) => {
                format!(
                    "their short side becomes {side} pixels, the other keeps the aspect ratio, rounded down"
                )
            }
            Resize::Square(side) => format!("both sides become {side} pixels, whatever the aspect ratio"),
        };
        let classes = self.class_names.len();
        let mut text = format!(
            "## The model\n\nOperators of ONNX's opset {OPSET}, float32, any number N of images. `{DATA}`, where there \
             is one, has the weights and belongs beside it.\n\n\
             | `{MODEL}` | | |\n|---|---|---|\n\
             | input `{name}` | {kind} | {what} |\n\
             | output `probabilities` | float32 [N, {classes}] | softmax(logits / temperature) |\n\
             | output `logits` | float32 [N, {classes}] | of the head |\n\
             | output `features` | float32 [N, E] | of the photos, of length 1 |\n\n\
             `{LABELS}` has the classes in their order. They are in the metadata of the model too, with the temperature \
             and what is to be done with photos: they are {turned}, transparency is put on white, {sized} (bicubic, as \
             Pillow has it), and the {side} x {side} pixels in the middle are cut out.\n\n\
             ## Use in Python\n\n`folder` is this folder, `photo` the path of a photo.\n\n```python\n\
             import json\n\nimport numpy as np\nimport onnxruntime\nfrom PIL import {import}\n\n\
             session = onnxruntime.InferenceSession(f\"{{folder}}/{MODEL}\")\n\
             class_names = json.load(open(f\"{{folder}}/{LABELS}\", encoding=\"utf-8\"))\n\n\
             {opened}"
        );
        text += &match preprocess.resize() {
            Resize::ShortSide(short) => {
                format!("width, height = ({short} * side // min(image.size) for side in image.size)\n")
            }
            Resize::Square(side) => format!("width, height = {side}, {side}\n"),
        };
        text += &format!(
            "left, top = (width - {side}) // 2, (height - {side}) // 2\n\
             image = image.resize((width, height), Image.Resampling.BICUBIC)\n\
             pixels = np.asarray(image.crop((left, top, left + {side}, top + {side})))[None]\n"
        );
        if input == OnnxInput::Normalised {
            text += &format!(
                "pixels = (np.float32(pixels) / 255 - np.float32({mean:?})) / np.float32({std:?})\n\
                 pixels = pixels.transpose(0, 3, 1, 2)\n"
            );
        }
        text + &format!(
            "[probabilities] = session.run([\"probabilities\"], {{\"{name}\": pixels}})\n\
             best = probabilities[0].argmax()\n\
             print(class_names[best], probabilities[0, best])\n```\n"
        )
    }

    fn revision(&self) -> Option<&str> {
        self.base.on_hub().and_then(|(_, revision)| revision)
    }

    fn data_name(&self) -> String {
        match &self.settings.data {
            Some(data) => format!("`{}`", last_part(data)),
            None => "drawn flowers".into(),
        }
    }
}

/// The lines behind those that load the model.
const READ_HEAD: &str = r#"with safe_open(f"{folder}/head.safetensors", "pt") as file:
    weight, bias = file.get_tensor("head.weight"), file.get_tensor("head.bias")
    temperature = file.get_tensor("temperature")
    class_names = json.loads(file.metadata()["class_names"])

"#;

/// The lines behind those that open a photo.
const CLASSIFY: &str = r#"pixels = processor(images=image, return_tensors="pt")["pixel_values"]
with torch.no_grad():
    pooled = model.vision_model(pixel_values=pixels.to(model.dtype)).pooler_output
    features = model.visual_projection(pooled).float()
    features = features / features.norm(dim=-1, keepdim=True)
    logits = features @ weight.T + bias
probabilities = (logits / temperature).softmax(dim=-1)[0]
print(class_names[int(probabilities.argmax())], float(probabilities.max()))
```
"#;

fn last_part(path: &Path) -> String {
    plain(&path.file_name().unwrap_or(path.as_os_str()).to_string_lossy())
}

/// Text that cannot end the table or the code that it stands in.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || "`|<>".contains(c) { ' ' } else { c }).collect()
}

fn result_row(name: &str, metrics: &EvalMetrics) -> String {
    let [top1, top5, f1, text] =
        [metrics.top1, metrics.top5, metrics.macro_f1, metrics.text_top1].map(percent);
    format!("| {name} | {} | {top1} | {top5} | {f1} | {text} |\n", metrics.images)
}

fn percent(fraction: f64) -> String {
    format!("{:.2} %", 100.0 * fraction)
}
