//! What the integration tests share: peers that can be trusted, counted and broken.
//!
//! Invariant: nothing here uses the code under test, except generated protobuf types. One noun a file:
//!
//! | module | noun |
//! |---|---|
//! | `registry` | `TestRegistry`: a registry that counts, fails and waits on demand |
//! | `image`, `layer`, `blob`, `layout` | images of any size, made from seeds; OCI layout directories |
//! | `digest` | digests computed independently |
//! | `daemon`, `disk` | `Daemon`: `thunkd` as a process that is started, killed and measured |
//! | `buildctl`, `llb` | `Buildctl`: the real client; LLB definitions for it |
//! | `docker_registry` | `DockerRegistry`: a real registry that `TestRegistry` must agree with |
//! | `http`, `tools`, `wait` | a plain HTTP client; foreign programs; waiting for them |

pub mod blob;
pub mod buildctl;
pub mod daemon;
pub mod digest;
pub mod disk;
pub mod docker_registry;
pub mod http;
pub mod image;
pub mod layer;
pub mod layout;
pub mod llb;
pub mod registry;
pub mod tools;
pub mod wait;

pub use self::blob::BlobSource;
pub use self::buildctl::Buildctl;
pub use self::daemon::Daemon;
pub use self::daemon::DaemonOptions;
pub use self::daemon::trust;
pub use self::digest::sha256;
pub use self::disk::DiskWatch;
pub use self::disk::disk_usage;
pub use self::docker_registry::DockerRegistry;
pub use self::http::http_client;
pub use self::image::Descriptor;
pub use self::image::Image;
pub use self::image::ImageBuilder;
pub use self::layer::Layer;
pub use self::layout::write_layout;
pub use self::registry::Auth;
pub use self::registry::How;
pub use self::registry::Op;
pub use self::registry::Options;
pub use self::registry::Right;
pub use self::registry::TestRegistry;
pub use self::tools::tool;
pub use self::wait::poll;
