//! Values of the OCI specifications: digests, descriptors, manifests, platforms, references.
//!
//! Everything here is plain data: parsed once at the edge, with limits, and passed on as a type that
//! can't be wrong. A [`DiffId`] and a blob's [`Digest`] are different types, since mixing them up is
//! the classic bug of this field.

mod descriptor;
mod digest;
mod manifest;
pub mod media_type;
mod platform;
mod quick;
mod reference;
mod text;

pub use descriptor::Descriptor;
pub use descriptor::annotation;
pub use digest::Algorithm;
pub use digest::ChainId;
pub use digest::DiffId;
pub use digest::Digest;
pub use digest::DigestHasher;
pub use digest::InvalidDigest;
pub use manifest::Index;
pub use manifest::InvalidManifest;
pub use manifest::MAX_MANIFEST_BYTES;
pub use manifest::Manifest;
pub use manifest::ManifestOrIndex;
pub use platform::InvalidPlatform;
pub use platform::Platform;
pub use quick::Quick;
pub use quick::QuickMap;
pub use quick::QuickSet;
pub use reference::InvalidReference;
pub use reference::Reference;
pub use text::from_text;
