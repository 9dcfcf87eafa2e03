//! The nodes of a tuned classifier: what `clip::vision` computes for inference, and the head behind it.
//!
//! Every extent but that of the batch is written down, so that only the tokens that are the same for all images, the class
//! token and prompts, ask for the batch.

use super::OnnxInput;
use super::proto::{
    AttributeProto, DimensionProto, Extent, FLOAT, GraphProto, INT64, NodeProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, UINT8, ValueInfoProto,
};
use crate::clip::config::{Activation, VisionConfig};
use crate::data::Preprocess;
use crate::tensor::Tensor;
use crate::train::Result;
use crate::train::adapter::HeadFile;
use crate::tune::PromptMode;
use std::collections::BTreeSet;
use std::f64::consts::FRAC_1_SQRT_2;

/// The version of the operators: the first with layer norm among them.
pub(in crate::train::export) const OPSET: i64 = 17;

/// The version of the file format that came with [`OPSET`].
pub(super) const IR: i64 = 8;

/// The name of the batch's extent.
const BATCH: &str = "N";

/// What a graph is made from.
pub(super) struct Classifier<'a> {
    pub input: OnnxInput,
    pub preprocess: &'a Preprocess,
    pub vision: &'a VisionConfig,
    /// Width E of the features.
    pub features: usize,
    /// \[sets, m, D\]: one set for all blocks, or one for each.
    pub prompts: Option<(PromptMode, &'a Tensor)>,
    pub head: &'a HeadFile,
}

/// A tensor of f32 that lies in the file, or beside it.
pub(super) struct Weight {
    pub name: String,
    pub dims: Vec<usize>,
    pub from: From,
}

pub(super) enum From {
    /// The tensor of the same name in the checkpoint.
    Checkpoint,
    /// That tensor \[out, in\], transposed.
    Transposed,
    Here(Tensor),
}

/// The graph of `classifier`, with the small constants in it, and the tensors that belong into it besides.
pub(super) fn graph(classifier: &Classifier<'_>) -> Result<(GraphProto, Vec<Weight>)> {
    let mut builder = Builder::default();
    let input = builder.input(classifier);
    let images = builder.images(classifier, &input);
    let batch = builder.node(
        "batch",
        "Shape",
        &[&input],
        [AttributeProto::int("start", 0), AttributeProto::int("end", 1)],
    );
    let tokens = builder.tokens(classifier.vision, &images, &batch);
    let class = builder.blocks(classifier, &batch, tokens)?;
    builder.end(classifier, &class)?;
    builder.graph.name = "classifier".into();
    Ok((builder.graph, builder.weights))
}

#[derive(Default)]
struct Builder {
    graph: GraphProto,
    weights: Vec<Weight>,
    /// Constants that are there.
    constants: BTreeSet<String>,
}

impl Builder {
    /// Adds a node. Its one output has its name, which is returned.
    fn node<const N: usize>(
        &mut self,
        name: impl Into<String>,
        op: &str,
        inputs: &[&str],
        attributes: [AttributeProto; N],
    ) -> String {
        let name = name.into();
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![name.clone()],
            name: name.clone(),
            op_type: op.into(),
            attribute: attributes.into(),
        });
        name
    }

    fn constant(&mut self, name: &str, data_type: i32, dims: &[usize], raw_data: Vec<u8>) -> String {
        if self.constants.insert(name.to_string()) {
            let dims = dims.iter().map(|&extent| extent as i64).collect();
            let tensor = TensorProto { dims, data_type, name: name.into(), raw_data, ..Default::default() };
            self.graph.initializer.push(tensor);
        }
        name.to_string()
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let words: Vec<String> = values.iter().map(i64::to_string).collect();
        let name = format!("ints_{}", words.join("_"));
        self.constant(&name, INT64, &[values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        self.constant(name, FLOAT, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn number(&mut self, name: &str, value: f64) -> String {
        self.floats(name, &[], &[value as f32])
    }

    fn weight(&mut self, name: &str, dims: &[usize], from: From) -> String {
        self.weights.push(Weight { name: name.into(), dims: dims.into(), from });
        name.to_string()
    }

    fn linear(&mut self, name: &str, x: &str, [outputs, inputs]: [usize; 2]) -> String {
        let weight = self.weight(&format!("{name}.weight"), &[inputs, outputs], From::Transposed);
        let bias = self.weight(&format!("{name}.bias"), &[outputs], From::Checkpoint);
        let product = self.node(format!("{name}.product"), "MatMul", &[x, &weight], []);
        self.node(name, "Add", &[&product, &bias], [])
    }

    fn norm(&mut self, name: &str, x: &str, vision: &VisionConfig) -> String {
        let [weight, bias] = ["weight", "bias"]
            .map(|part| self.weight(&format!("{name}.{part}"), &[vision.tower.width], From::Checkpoint));
        let eps = AttributeProto::float("epsilon", vision.tower.norm_eps as f32);
        let inputs = [x, &weight, &bias];
        self.node(name, "LayerNormalization", &inputs, [AttributeProto::int("axis", -1), eps])
    }

    fn reshape(&mut self, name: String, x: &str, extents: &[usize]) -> String {
        // 0 leaves the batch as it is.
        let extents: Vec<i64> = std::iter::once(0).chain(extents.iter().map(|&e| e as i64)).collect();
        let shape = self.ints(&extents);
        self.node(name, "Reshape", &[x, &shape], [])
    }

    fn transpose(&mut self, name: String, x: &str, order: &[i64]) -> String {
        self.node(name, "Transpose", &[x], [AttributeProto::ints("perm", order)])
    }

    /// Tokens `from` to before `to` of every sequence.
    fn slice(&mut self, name: String, x: &str, from: usize, to: Option<usize>) -> String {
        let to = to.map_or(i64::MAX, |to| to as i64);
        let [from, to, axes] = [from as i64, to, 1].map(|value| self.ints(&[value]));
        self.node(name, "Slice", &[x, &from, &to, &axes], [])
    }

    /// `x`, \[D\] or \[m, D\], for every image: \[N, m, D\].
    fn repeated(&mut self, name: &str, x: &str, [count, width]: [usize; 2], batch: &str) -> String {
        let extents = self.ints(&[count as i64, width as i64]);
        let concat = [AttributeProto::int("axis", 0)];
        let shape = self.node(format!("{name}.shape"), "Concat", &[batch, &extents], concat);
        self.node(format!("{name}.repeated"), "Expand", &[x, &shape], [])
    }

    fn joined(&mut self, name: String, parts: &[&str]) -> String {
        self.node(name, "Concat", parts, [AttributeProto::int("axis", 1)])
    }

    fn input(&mut self, classifier: &Classifier<'_>) -> String {
        let side = classifier.vision.image_size;
        let (name, kind, extents) = match classifier.input {
            OnnxInput::Pixels => ("pixels", UINT8, [side, side, 3]),
            OnnxInput::Normalised => ("pixel_values", FLOAT, [3, side, side]),
        };
        self.graph.input.push(value(name, kind, &extents));
        name.to_string()
    }

    /// Normalised images \[N, 3, S, S\].
    fn images(&mut self, classifier: &Classifier<'_>, input: &str) -> String {
        if classifier.input == OnnxInput::Normalised {
            return input.to_string();
        }
        let most = self.number("pixels.most", 255.0);
        let mean = self.floats("pixels.mean", &[3, 1, 1], &classifier.preprocess.mean());
        let std = self.floats("pixels.std", &[3, 1, 1], &classifier.preprocess.std());
        let to = [AttributeProto::int("to", FLOAT.into())];
        let levels = self.node("pixels.levels", "Cast", &[input], to);
        let planes = self.transpose("pixels.planes".into(), &levels, &[0, 3, 1, 2]);
        let scaled = self.node("pixels.scaled", "Div", &[&planes, &most], []);
        let centred = self.node("pixels.centred", "Sub", &[&scaled, &mean], []);
        self.node("pixel_values", "Div", &[&centred, &std], [])
    }

    /// Images to tokens \[N, 1 + patches, D\].
    fn tokens(&mut self, vision: &VisionConfig, images: &str, batch: &str) -> String {
        let (d, p) = (vision.tower.width, vision.patch_size);
        let at = |part: &str| format!("vision_model.embeddings.{part}");
        let weight = self.weight(&at("patch_embedding.weight"), &[d, 3, p, p], From::Checkpoint);
        let class = self.weight(&at("class_embedding"), &[d], From::Checkpoint);
        let position = self.weight(&at("position_embedding.weight"), &[vision.tokens(), d], From::Checkpoint);
        let [kernel, strides] =
            ["kernel_shape", "strides"].map(|name| AttributeProto::ints(name, &[p as i64; 2]));
        let grid = self.node(at("patch_embedding"), "Conv", &[images, &weight], [kernel, strides]);
        let rows = self.reshape(at("patch_embedding.rows"), &grid, &[d, vision.patches()]);
        let patches = self.transpose(at("patches"), &rows, &[0, 2, 1]);
        let class = self.repeated(&at("class_embedding"), &class, [1, d], batch);
        let tokens = self.joined(at("tokens"), &[&class, &patches]);
        let placed = self.node(at("placed"), "Add", &[&tokens, &position], []);
        self.norm("vision_model.pre_layrnorm", &placed, vision)
    }

    /// All blocks; of the last the class token alone, \[N, 1, D\].
    fn blocks(&mut self, classifier: &Classifier<'_>, batch: &str, mut x: String) -> Result<String> {
        let vision = classifier.vision;
        let mut tokens = vision.tokens();
        let mut prompts = String::new();
        for layer in 0..vision.tower.layers {
            let at = format!("vision_model.encoder.layers.{layer}");
            if let Some((mode, values)) = classifier.prompts {
                let (sets, row) = (values.shape().rows(), values.shape().row_elements());
                let (d, count) = (vision.tower.width, row / vision.tower.width);
                if layer < sets {
                    let name = if sets == 1 { "prompts".into() } else { format!("prompts.{layer}") };
                    let set = values.view().rows(layer, 1)?.to_tensor(values.dtype())?.reshape([count, d])?;
                    let set = self.weight(&name, &[count, d], From::Here(set));
                    prompts = self.repeated(&name, &set, [count, d], batch);
                }
                let replaced = if layer > 0 && mode == PromptMode::Replace { count } else { 0 };
                let class = self.slice(format!("{at}.class"), &x, 0, Some(1));
                let rest = self.slice(format!("{at}.rest"), &x, 1 + replaced, None);
                x = self.joined(format!("{at}.prompted"), &[&class, &prompts, &rest]);
                tokens += count - replaced;
            }
            x = self.block(vision, &at, x, tokens, layer + 1 == vision.tower.layers);
        }
        Ok(x)
    }

    /// A block of sequences of so many `tokens`; of the last one the class token alone.
    fn block(&mut self, vision: &VisionConfig, at: &str, x: String, tokens: usize, last: bool) -> String {
        let (d, m, heads) = (vision.tower.width, vision.tower.mlp, vision.tower.heads);
        let part = |name: &str| format!("{at}.{name}");
        let normed = self.norm(&part("layer_norm1"), &x, vision);
        let (asking, residual, rows) = match last {
            true => {
                let asking = self.slice(part("layer_norm1.class"), &normed, 0, Some(1));
                (asking, self.slice(part("input.class"), &x, 0, Some(1)), 1)
            }
            false => (normed.clone(), x, tokens),
        };
        let scale = self.number("attention.scale", 1.0 / ((d / heads) as f64).sqrt());
        let q = self.linear(&part("self_attn.q_proj"), &asking, [d, d]);
        let q = self.node(part("self_attn.queries"), "Mul", &[&q, &scale], []);
        let q = self.heads(&part("self_attn.queries"), &q, [rows, heads, d / heads], &[0, 2, 1, 3]);
        let k = self.linear(&part("self_attn.k_proj"), &normed, [d, d]);
        let k = self.heads(&part("self_attn.keys"), &k, [tokens, heads, d / heads], &[0, 2, 3, 1]);
        let v = self.linear(&part("self_attn.v_proj"), &normed, [d, d]);
        let v = self.heads(&part("self_attn.values"), &v, [tokens, heads, d / heads], &[0, 2, 1, 3]);
        let scores = self.node(part("self_attn.scores"), "MatMul", &[&q, &k], []);
        let shares = self.softmax(&part("self_attn.shares"), &scores);
        let mixed = self.node(part("self_attn.mixed"), "MatMul", &[&shares, &v], []);
        let mixed = self.transpose(part("self_attn.tokens"), &mixed, &[0, 2, 1, 3]);
        let mixed = self.reshape(part("self_attn.joined"), &mixed, &[rows, d]);
        let out = self.linear(&part("self_attn.out_proj"), &mixed, [d, d]);
        let middle = self.node(part("middle"), "Add", &[&residual, &out], []);
        let normed = self.norm(&part("layer_norm2"), &middle, vision);
        let hidden = self.linear(&part("mlp.fc1"), &normed, [m, d]);
        let hidden = self.activation(vision.tower.activation, &part("mlp"), &hidden);
        let out = self.linear(&part("mlp.fc2"), &hidden, [d, m]);
        self.node(part("output"), "Add", &[&middle, &out], [])
    }

    /// Rows \[N, rows, D\] apart by heads, in the order of axes `order`.
    fn heads(&mut self, name: &str, x: &str, extents: [usize; 3], order: &[i64]) -> String {
        let split = self.reshape(format!("{name}.split"), x, &extents);
        self.transpose(format!("{name}.heads"), &split, order)
    }

    fn softmax(&mut self, name: &str, x: &str) -> String {
        self.node(name, "Softmax", &[x], [AttributeProto::int("axis", -1)])
    }

    fn activation(&mut self, activation: Activation, at: &str, x: &str) -> String {
        let part = |name: &str| format!("{at}.{name}");
        match activation {
            Activation::QuickGelu => {
                let slope = self.number("quick_gelu.slope", 1.702);
                let steep = self.node(part("steep"), "Mul", &[x, &slope], []);
                let share = self.node(part("share"), "Sigmoid", &[&steep], []);
                self.node(part("activated"), "Mul", &[x, &share], [])
            }
            // x·(1 + erf(x/√2))/2: an operator of its own has come later than OPSET.
            Activation::Gelu => {
                let [scale, one, half] = [("scale", FRAC_1_SQRT_2), ("one", 1.0), ("half", 0.5)]
                    .map(|(name, value)| self.number(&format!("gelu.{name}"), value));
                let scaled = self.node(part("scaled"), "Mul", &[x, &scale], []);
                let erf = self.node(part("erf"), "Erf", &[&scaled], []);
                let doubled = self.node(part("doubled"), "Add", &[&erf, &one], []);
                let share = self.node(part("share"), "Mul", &[&doubled, &half], []);
                self.node(part("activated"), "Mul", &[x, &share], [])
            }
        }
    }

    /// The class token behind the blocks to the outputs.
    fn end(&mut self, classifier: &Classifier<'_>, class: &str) -> Result<()> {
        let (d, e, head) = (classifier.vision.tower.width, classifier.features, classifier.head);
        let normed = self.norm("vision_model.post_layernorm", class, classifier.vision);
        let pooled = self.reshape("pooled".into(), &normed, &[d]);
        let weight = self.weight("visual_projection.weight", &[d, e], From::Transposed);
        let projected = self.node("visual_projection", "MatMul", &[&pooled, &weight], []);
        let axes = [AttributeProto::ints("axes", &[-1]), AttributeProto::int("keepdims", 1)];
        let length = self.node("length", "ReduceL2", &[&projected], axes);
        let least = self.number("length.least", 1e-12);
        let length = self.node("length.divisor", "Max", &[&length, &least], []);
        let features = self.node("features", "Div", &[&projected, &length], []);

        let classes = head.class_names.len();
        let weight = self.weight("head.weight", &[e, classes], From::Here(transposed(&head.weight)?));
        let bias = self.weight("head.bias", &[classes], From::Here(head.bias.clone()));
        let product = self.node("head.product", "MatMul", &[&features, &weight], []);
        let logits = self.node("logits", "Add", &[&product, &bias], []);
        let temperature = self.number("temperature", head.temperature);
        let tempered = self.node("logits.tempered", "Div", &[&logits, &temperature], []);
        let probabilities = self.softmax("probabilities", &tempered);
        for (name, extent) in [(probabilities, classes), (logits, classes), (features, e)] {
            self.graph.output.push(value(&name, FLOAT, &[extent]));
        }
        Ok(())
    }
}

/// An input or output of the extents N, `extents`.
fn value(name: &str, elem_type: i32, extents: &[usize]) -> ValueInfoProto {
    let batch = Extent::Param(BATCH.into());
    let extents = std::iter::once(batch).chain(extents.iter().map(|&extent| Extent::Value(extent as i64)));
    let dim = extents.map(|extent| DimensionProto { value: Some(extent) }).collect();
    let tensor = TensorTypeProto { elem_type, shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}

/// A matrix of f32 with rows for columns.
pub(super) fn transposed(matrix: &Tensor) -> Result<Tensor> {
    let (rows, columns) = (matrix.shape().rows(), matrix.shape().columns());
    let mut turned = Tensor::zeros([columns, rows], matrix.dtype());
    let values = matrix.typed::<f32>()?;
    for (column, turned) in turned.typed_mut::<f32>()?.chunks_exact_mut(rows).enumerate() {
        for (row, value) in turned.iter_mut().enumerate() {
            *value = values[row * columns + column];
        }
    }
    Ok(turned)
}
