//! Small data sets for the tests of `data`.
use std::path::{Path, PathBuf};

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images")
}

pub fn photo(name: &str) -> PathBuf {
    fixtures().join("photos").join(name)
}

/// A Flowers-102 root of five photos with labels 77, 102, 10, 1, 2.
pub fn flowers(folder: &Path, uint8: bool) {
    std::fs::create_dir_all(folder.join("jpg")).unwrap();
    for number in 1..=5 {
        let to = folder.join(format!("jpg/image_{number:05}.jpg"));
        std::fs::copy(photo("base_420_q60.jpg"), to).unwrap();
    }
    write_mat(&folder.join("imagelabels.mat"), &[("labels", &[77.0, 102.0, 10.0, 1.0, 2.0])], uint8);
    let splits: [(&str, &[f64]); 3] = [("trnid", &[4.0, 1.0]), ("valid", &[2.0]), ("tstid", &[3.0, 5.0])];
    write_mat(&folder.join("setid.mat"), &splits, uint8);
}

/// A MATLAB 5 file of row vectors, not compressed, as doubles or as bytes.
pub fn write_mat(path: &Path, arrays: &[(&str, &[f64])], uint8: bool) {
    let mut file = vec![b' '; 124];
    file.extend([0, 1, b'I', b'M']);
    for (name, values) in arrays {
        let mut body = Vec::new();
        let (class, kind) = if uint8 { (9u32, 2) } else { (6, 9) };
        element(&mut body, 6, &[class.to_le_bytes(), [0; 4]].concat());
        element(&mut body, 5, &[1i32.to_le_bytes(), (values.len() as i32).to_le_bytes()].concat());
        element(&mut body, 1, name.as_bytes());
        let data: Vec<u8> = if uint8 {
            values.iter().map(|&v| v as u8).collect()
        } else {
            values.iter().flat_map(|v| v.to_le_bytes()).collect()
        };
        element(&mut body, kind, &data);
        element(&mut file, 14, &body);
    }
    std::fs::write(path, file).unwrap();
}

fn element(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    if (1..=4).contains(&data.len()) {
        out.extend((kind | (data.len() as u32) << 16).to_le_bytes());
        out.extend(data);
        out.resize(out.len() + 4 - data.len(), 0);
        return;
    }
    out.extend(kind.to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    out.resize(out.len().next_multiple_of(8), 0);
}
