//! What the integration tests share: peers that can be trusted, counted and broken.
//!
//! Invariant: nothing here uses the code under test, except generated protobuf types. One noun a file:
//!
//! | module | noun |
//! |---|---|
//! | `registry` | `TestRegistry`: a registry that counts, fails and waits on demand |
//! | `image`, `layer`, `blob`, `layout` | images of any size, made from seeds; OCI layout directories |
//! | `archive`, `digest` | archives read back and judged; digests computed independently |
//! | `daemon`, `disk` | `Daemon`: `thunkd` as a process that is started, killed and measured |
//! | `leaks`, `loopback` | what a daemon has left when nobody needs anything; a small disk for one |
//! | `buildctl`, `llb` | `Buildctl`: the real client; LLB definitions for it |
//! | `client` | `Client`: a build client whose callbacks are counted, held and refused |
//! | `docker_registry`, `buildkitd` | the real ones, with which `TestRegistry` and `Client` must agree |
//! | `process`, `tools`, `wait` | child processes: measured, found, waited for |
//! | `http`, `web`, `gate` | a plain HTTP client; a server of files that counts; where something waits until it is let go |

pub mod archive;
pub mod blob;
pub mod buildctl;
pub mod buildkitd;
pub mod client;
pub mod containerd;
pub mod daemon;
pub mod digest;
pub mod disk;
pub mod docker_registry;
pub mod gate;
pub mod http;
pub mod image;
pub mod layer;
pub mod layout;
pub mod leaks;
pub mod llb;
pub mod loopback;
pub mod process;
pub mod registry;
pub mod tools;
pub mod wait;
pub mod web;

pub use self::archive::Archive;
pub use self::blob::BlobSource;
pub use self::buildctl::Buildctl;
pub use self::buildkitd::Buildkitd;
pub use self::client::Attachables;
pub use self::client::Build;
pub use self::client::Callback;
pub use self::client::Client;
pub use self::containerd::Containerd;
pub use self::daemon::Daemon;
pub use self::daemon::DaemonOptions;
pub use self::daemon::trust;
pub use self::digest::sha256;
pub use self::disk::DiskWatch;
pub use self::disk::disk_usage;
pub use self::disk::verify_blobs;
pub use self::docker_registry::DockerRegistry;
pub use self::http::http_client;
pub use self::image::Descriptor;
pub use self::image::Image;
pub use self::image::ImageBuilder;
pub use self::layer::Layer;
pub use self::layout::write_layout;
pub use self::leaks::assert_nothing_left;
pub use self::loopback::Loopback;
pub use self::registry::Auth;
pub use self::registry::How;
pub use self::registry::Op;
pub use self::registry::Options;
pub use self::registry::Right;
pub use self::registry::TestRegistry;
pub use self::tools::tool;
pub use self::wait::poll;
pub use self::web::TestWeb;
