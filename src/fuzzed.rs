//! The crate as a fuzzer links it: the modules that take bytes of strangers and need no daemon for it, under the paths
//! that they have in `lib.rs`. No row above them is built, and none of what those depend on: of `ops` there is what reads a
//! definition, of `proto` the messages that it is made of.
//!
//! This is the root of the library in `integration/fuzz`, and stands here since a module is looked for beside its root.

pub mod archive;
pub mod failpoint;
pub mod fs;
pub mod oci;
pub mod pattern;
pub mod progress;
pub mod snapshot;
pub mod task;

/// Generated messages, without services.
pub mod proto {
    pub mod json;

    pub mod pb {
        #![allow(
            clippy::all,
            unused_qualifications,
            reason = "generated code keeps the style of its generator"
        )]

        include!(concat!(env!("OUT_DIR"), "/pb.rs"));
    }
}

/// LLB as a client sends it, up to the graph.
pub mod ops {
    mod graph;
    mod kept;
    pub mod llb;
    pub mod op;

    pub use graph::Edge;
    pub use graph::Graph;
    pub use graph::Vertex;
    pub use graph::VertexDigest;
    pub use graph::VertexOptions;

    /// Stands for what an image did resolve to: nothing is resolved here.
    mod resolution {
        #[derive(Clone, PartialEq, Eq, Debug, Default)]
        pub struct Resolved(());
    }

    /// The same of a file of a web server.
    mod http {
        use std::time::SystemTime;

        use crate::oci::Digest;

        #[derive(Clone, Debug)]
        pub struct HttpFile {
            pub digest: Digest,
            pub filename: String,
            pub modified: Option<SystemTime>,
        }
    }

    /// And of the name of an image.
    mod image {
        use crate::oci::Descriptor;

        #[derive(Clone, Debug)]
        pub struct Named {
            pub root: Descriptor,
        }
    }
}
