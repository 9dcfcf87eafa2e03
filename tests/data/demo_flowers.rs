//! The demo's flowers and bundled model: the pictures are a function of the seed, the classes are new to the
//! model but their attributes are not, and the model directory is complete and small.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use clip_engine::data::demo::{
    Centre, Colour, FlowerForm, FlowerKind, IMAGE_SIZE, Marking, Petals, Rings, World, all_kinds,
    demo_class_names, demo_classes, demo_dataset, draw, per_class, pretraining_kinds,
};
use clip_engine::data::{MemoryImage, Split};
use clip_engine::random;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tokenizers::Tokenizer;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read_json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(repository(path)).unwrap()).unwrap()
}

#[test]
fn the_same_seed_draws_the_same_set_and_another_seed_another() {
    let first: Vec<_> = demo_dataset(7).step_by(29).collect();
    let again: Vec<_> = demo_dataset(7).step_by(29).collect();
    assert_eq!(first, again);
    for (image, other) in first.iter().zip(demo_dataset(8).step_by(29).collect::<Vec<_>>()) {
        assert_eq!((image.label, &image.name), (other.label, &other.name));
        assert_ne!(image.pixels, other.pixels, "{}", image.name);
    }
}

#[test]
fn a_picture_does_not_depend_on_the_ones_before_it() {
    let index = 100;
    let image = &demo_dataset(3).skip(index).take(1).collect::<Vec<_>>()[0];
    let kind = demo_classes()[image.label as usize];
    let alone = draw(&kind, World::Field, &mut random::stream(3, index as u64), IMAGE_SIZE);
    assert_eq!(image.pixels, alone);
}

#[test]
fn the_set_has_the_promised_sizes_and_no_picture_twice() {
    let images: Vec<_> = demo_dataset(42).collect();
    assert_eq!(images.len(), demo_dataset(42).len());
    let names = demo_class_names();
    for split in Split::ALL {
        for (label, name) in names.iter().enumerate() {
            let of_class = images.iter().filter(|image| image.split == split && image.label == label as u32);
            assert_eq!(of_class.clone().count(), per_class(split));
            let folder = format!("{split}/{name}/");
            assert!(of_class.clone().all(|image| image.name.starts_with(&folder)));
        }
    }
    assert!(images.iter().all(|image| image.pixels.len() == IMAGE_SIZE * IMAGE_SIZE * 3));
    let pictures: HashSet<&[u8]> = images.iter().map(|image| image.pixels.as_slice()).collect();
    let paths: HashSet<&str> = images.iter().map(|image| image.name.as_str()).collect();
    assert_eq!((pictures.len(), paths.len()), (images.len(), images.len()));
}

#[test]
fn demo_kinds_are_new_to_the_model_but_every_pair_of_their_attributes_is_not() {
    let (demo, seen) = (demo_classes(), pretraining_kinds());
    let (held_out, known): (BTreeSet<_>, BTreeSet<_>) =
        (demo.iter().copied().collect(), seen.iter().copied().collect());
    assert_eq!((held_out.len(), known.len()), (demo.len(), seen.len()), "a kind is listed twice");
    assert!(held_out.is_disjoint(&known));
    assert_eq!(held_out.len() + known.len(), all_kinds().len());
    let words: BTreeSet<String> = all_kinds().iter().map(FlowerKind::name).collect();
    assert_eq!(words.len(), all_kinds().len(), "two kinds share a name");

    let values = |kind: &FlowerKind| {
        let FlowerKind { rings, petals, marking, colour, form, centre } = *kind;
        [rings as usize, petals as usize, marking as usize, colour as usize, form as usize, centre as usize]
    };
    let seen: Vec<_> = seen.iter().map(values).collect();
    for kind in demo.iter().map(values) {
        for a in 0..kind.len() {
            for b in 0..kind.len() {
                let together = |other: &[usize; 6]| other[a] == kind[a] && other[b] == kind[b];
                assert!(seen.iter().any(together), "attributes {a} and {b} of {kind:?} never meet");
            }
        }
    }
    for (attribute, count) in [
        (0, Rings::ALL.len()),
        (1, Petals::ALL.len()),
        (2, Marking::ALL.len()),
        (3, Colour::ALL.len()),
        (4, FlowerForm::ALL.len()),
        (5, Centre::ALL.len()),
    ] {
        let distinct: HashSet<usize> = seen.iter().map(|kind| kind[attribute]).collect();
        assert_eq!(distinct.len(), count);
    }
}

#[test]
fn flowers_are_drawn_as_when_the_model_was_made() {
    let file = std::fs::read(repository("tests/fixtures/demo/reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&file).unwrap().tensor("pixels").unwrap();
    assert_eq!(reference.shape(), [demo_classes().len(), IMAGE_SIZE, IMAGE_SIZE, 3]);
    let pictures = reference.data().chunks_exact(IMAGE_SIZE * IMAGE_SIZE * 3);
    let first_of_test = |image: &MemoryImage| image.split == Split::Test && image.name.ends_with("/000.png");
    let first_of_test: Vec<_> = demo_dataset(42).filter(first_of_test).collect();
    for (drawn, expected) in first_of_test.iter().zip(pictures) {
        let differences: Vec<u8> = drawn.pixels.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).collect();
        // One platform's sine is not another's: a sample on a petal's rim may fall on its other side.
        let changed = differences.iter().filter(|&&difference| difference > 1).count();
        assert!(
            changed * 200 < differences.len(),
            "{}: {changed} values differ; make the model again",
            drawn.name
        );
    }
}

/// Mean colour of the ring between centre and rim over twelve plain studio flowers.
fn mean_petal_colour(colour: Colour) -> [f32; 3] {
    let kind = FlowerKind {
        rings: Rings::Double,
        petals: Petals::Eight,
        marking: Marking::Plain,
        colour,
        form: FlowerForm::Ruffle,
        centre: Centre::Brown,
    };
    let mut sum = [0.0f32; 3];
    let mut count = 0.0;
    for stream in 0..12 {
        let picture = draw(&kind, World::Studio, &mut random::stream(5, stream), IMAGE_SIZE);
        for (index, pixel) in picture.chunks_exact(3).enumerate() {
            let (x, y) = ((index % IMAGE_SIZE) as f32, (index / IMAGE_SIZE) as f32);
            let distance = (x - 0.50 * IMAGE_SIZE as f32).hypot(y - 0.47 * IMAGE_SIZE as f32);
            if (7.0..12.0).contains(&distance) {
                count += 1.0;
                sum = std::array::from_fn(|channel| sum[channel] + f32::from(pixel[channel]));
            }
        }
    }
    sum.map(|channel| channel / count)
}

#[test]
fn petals_have_the_colour_of_their_word() {
    let [red, green, blue] = mean_petal_colour(Colour::Red);
    assert!(red > 2.0 * green && red > 2.0 * blue);
    let [red, green, blue] = mean_petal_colour(Colour::Orange);
    assert!(red > 1.3 * green && green > 1.5 * blue);
    let [red, green, blue] = mean_petal_colour(Colour::Yellow);
    assert!(red < 1.3 * green && green > 1.7 * blue);
    let white = mean_petal_colour(Colour::White);
    assert!(white.iter().all(|&channel| channel > 130.0));
    let [red, green, blue] = mean_petal_colour(Colour::Pink);
    assert!(red > 1.15 * blue && blue > 1.03 * green && green > 80.0);
    let [red, green, blue] = mean_petal_colour(Colour::Magenta);
    assert!(red > 1.2 * blue && blue > 1.5 * green);
    let [red, green, blue] = mean_petal_colour(Colour::Violet);
    assert!(blue > 1.2 * red && red > 1.2 * green);
    let [red, green, blue] = mean_petal_colour(Colour::Blue);
    assert!(blue > 1.3 * green && green > 1.05 * red);
}

#[test]
fn the_bundled_model_is_complete_half_precision_and_small() {
    let folder = repository("assets/demo-clip");
    let bytes: u64 =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= 6 << 20, "assets/demo-clip holds {bytes} bytes");

    let config = read_json("assets/demo-clip/config.json");
    let size = |tower: &str, key: &str| config[tower][key].as_u64().unwrap() as usize;
    let (text, vision) = (size("text_config", "hidden_size"), size("vision_config", "hidden_size"));
    let (layers_t, layers_v) =
        (size("text_config", "num_hidden_layers"), size("vision_config", "num_hidden_layers"));
    let (patch, embedding) =
        (size("vision_config", "patch_size"), config["projection_dim"].as_u64().unwrap() as usize);
    assert_eq!(size("vision_config", "image_size"), IMAGE_SIZE);
    let tokens = (IMAGE_SIZE / patch).pow(2) + 1;
    let positions = size("text_config", "max_position_embeddings");
    let expected = [
        ("logit_scale", vec![]),
        ("text_model.embeddings.token_embedding.weight", vec![size("text_config", "vocab_size"), text]),
        ("text_model.embeddings.position_embedding.weight", vec![positions, text]),
        ("text_model.final_layer_norm.bias", vec![text]),
        ("text_projection.weight", vec![embedding, text]),
        ("vision_model.embeddings.class_embedding", vec![vision]),
        ("vision_model.embeddings.patch_embedding.weight", vec![vision, 3, patch, patch]),
        ("vision_model.embeddings.position_embedding.weight", vec![tokens, vision]),
        ("vision_model.pre_layrnorm.weight", vec![vision]),
        ("vision_model.post_layernorm.bias", vec![vision]),
        ("visual_projection.weight", vec![embedding, vision]),
    ];
    let file = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    for (name, shape) in expected {
        assert_eq!(tensors.tensor(name).unwrap().shape(), shape, "{name}");
    }
    for (tower, layers) in [("text_model", layers_t), ("vision_model", layers_v)] {
        for layer in 0..layers {
            for part in
                ["self_attn.out_proj.weight", "layer_norm1.bias", "layer_norm2.weight", "mlp.fc2.bias"]
            {
                let name = format!("{tower}.encoder.layers.{layer}.{part}");
                assert!(tensors.tensor(&name).is_ok(), "{name} is missing");
            }
        }
    }
    // Sixteen tensors a block; beside them, the three ends of the text tower's four, the vision tower's
    // seven, two projections and the scale.
    assert_eq!(tensors.len(), 16 * (layers_t + layers_v) + 4 + 7 + 3);
    for (name, tensor) in tensors.tensors() {
        assert_eq!(tensor.dtype(), Dtype::F16, "{name}");
        let finite = |pair: &[u8]| half::f16::from_le_bytes([pair[0], pair[1]]).is_finite();
        assert!(tensor.data().chunks_exact(2).all(finite), "{name} is not finite");
    }
}

#[test]
fn the_bundled_tokenizer_knows_the_words_and_can_encode_anything() {
    let config = read_json("assets/demo-clip/config.json");
    let tokenizer = Tokenizer::from_file(repository("assets/demo-clip/tokenizer.json")).unwrap();
    let id = |key: &str| config["text_config"][key].as_u64().unwrap() as u32;
    let (bos, eos) = (id("bos_token_id"), id("eos_token_id"));
    assert_eq!(tokenizer.token_to_id("<|startoftext|>"), Some(bos));
    assert_eq!(tokenizer.token_to_id("<|endoftext|>"), Some(eos));
    assert_eq!(tokenizer.get_vocab_size(true) as u64, config["text_config"]["vocab_size"].as_u64().unwrap());

    let encode = |text: &str| tokenizer.encode(text, true).unwrap().get_ids().to_vec();
    for name in demo_class_names() {
        let ids = encode(&format!("A photo of flower {name}."));
        assert_eq!((ids.first(), ids.last()), (Some(&bos), Some(&eos)));
        // One token a word: words and hyphens of the name, four words and the full stop around it.
        let words = name.split([' ', '-']).count() + name.matches('-').count();
        assert_eq!(ids.len(), words + 4 + 1 + 2, "{name}");
    }
    assert_eq!(encode("A  Violet\nSTAR"), encode("a violet star"));
    for text in ["", "Übergröße", "你好 😀", "it's 2023 & <b>", "\u{7f}\u{0}ÿ"] {
        let ids = encode(text);
        assert!(
            ids[1..ids.len() - 1].iter().all(|&id| id != eos && id != bos),
            "{text:?} has unknown tokens"
        );
        let visible: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        assert!(ids.len() >= 2 + usize::from(!visible.is_empty()), "{text:?} was dropped");
    }
}

#[test]
fn the_bundled_preprocessing_takes_demo_pictures_as_they_are() {
    let processor = read_json("assets/demo-clip/preprocessor_config.json");
    assert_eq!(processor["size"]["shortest_edge"], IMAGE_SIZE);
    assert_eq!(processor["crop_size"]["height"], IMAGE_SIZE);
    assert_eq!(processor["crop_size"]["width"], IMAGE_SIZE);
    for key in ["do_resize", "do_center_crop", "do_rescale", "do_normalize"] {
        assert_eq!(processor[key], true, "{key}");
    }
}
