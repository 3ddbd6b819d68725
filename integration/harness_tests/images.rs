//! Images made from seeds are what real tools would make.

use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::Value;

use crate::harness::BlobSource;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::sha256;
use crate::harness::write_layout;

fn contents(layer: &Layer) -> (String, Vec<(String, Vec<u8>)>) {
    let blob = layer.source.as_ref().expect("a blob").to_bytes();
    let mut tar = Vec::new();
    GzDecoder::new(&blob[..]).read_to_end(&mut tar).expect("gzip");
    let mut archive = tar::Archive::new(&tar[..]);
    let entries = archive.entries().expect("a tar").map(|entry| {
        let mut entry = entry.expect("an entry");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("contents");
        (entry.path().expect("a path").display().to_string(), bytes)
    });
    let entries = entries.collect();
    (sha256(&tar), entries)
}

#[test]
fn a_generated_layer_is_a_tar_in_gzip_with_the_digests_that_it_says() {
    // Sizes on both sides of a deflate block, a tar block and a page of the generator.
    for size in [0, 1, 511, 512, 64_000, 65_535, 65_536, 64_511, 200_000, 1 << 20] {
        let layer = Layer::incompressible(7, size);
        let blob = layer.source.as_ref().expect("a blob").to_bytes();
        assert_eq!(sha256(&blob), layer.digest(), "size {size}");
        assert_eq!(blob.len() as u64, layer.size(), "size {size}");
        let (diff_id, entries) = contents(&layer);
        assert_eq!(diff_id, layer.diff_id, "size {size}");
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].1.len() as u64, size);
    }
}

#[test]
fn any_range_of_a_generated_layer_is_the_same_bytes() {
    let source = BlobSource::generated(3, 300_000);
    let whole = source.to_bytes();
    for start in (0..source.len()).step_by(9_973) {
        for len in [1, 6, 4_096, 70_000] {
            let end = (start + len).min(source.len());
            let part: Vec<u8> = source.read(start, end).flatten().collect();
            assert!(part == whole[start as usize..end as usize], "{start}-{end}");
        }
    }
}

#[test]
fn generated_layers_are_incompressible_and_differ_by_seed() {
    let one = BlobSource::generated(1, 1 << 20).to_bytes();
    let two = BlobSource::generated(2, 1 << 20).to_bytes();
    assert_ne!(sha256(&one), sha256(&two));
    let mut packed = Vec::new();
    let both = [one.clone(), two].concat();
    flate2::read::GzEncoder::new(&both[..], flate2::Compression::best())
        .read_to_end(&mut packed)
        .expect("gzip");
    assert!(packed.len() > both.len() * 99 / 100);
    assert_eq!(sha256(BlobSource::generated(1, 1 << 20).to_bytes()), sha256(&one));
}

#[test]
fn layers_of_files_hold_the_files() {
    let layer = Layer::files([("etc/motd", "hello\n"), ("bin/true", "")]);
    let (diff_id, entries) = contents(&layer);
    assert_eq!(diff_id, layer.diff_id);
    assert_eq!(entries, [("etc/motd".to_owned(), b"hello\n".to_vec()), ("bin/true".to_owned(), Vec::new())]);
}

#[test]
fn a_layout_holds_an_image_that_its_index_names() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = Image::incompressible(11, 3, 300_000);
    write_layout(directory.path(), &[("v1", &image)]).expect("a layout");
    let read = |digest: &str| {
        let path = directory.path().join("blobs").join(digest.replace(':', "/"));
        let bytes = std::fs::read(path).expect("a blob");
        assert_eq!(sha256(&bytes), digest);
        bytes
    };
    let index = std::fs::read(directory.path().join("index.json")).expect("an index");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "v1");
    let manifest: Value = serde_json::from_slice(&read(image.digest())).expect("JSON");
    let config: Value =
        serde_json::from_slice(&read(manifest["config"]["digest"].as_str().expect("a digest")))
            .expect("JSON");
    let layers = manifest["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 3);
    for (layer, diff_id) in layers.iter().zip(config["rootfs"]["diff_ids"].as_array().expect("diff IDs")) {
        let mut tar = Vec::new();
        let blob = read(layer["digest"].as_str().expect("a digest"));
        GzDecoder::new(&blob[..]).read_to_end(&mut tar).expect("gzip");
        assert_eq!(sha256(&tar), diff_id.as_str().expect("a digest"));
    }
}
