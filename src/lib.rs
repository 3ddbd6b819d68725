//! thunk: a lazy build cache for container images.
//!
//! A *thunk* is a value that is not computed until somebody needs it, computed once, and remembered.
//! `thunkd` owns the blobs, layers and build results of one node. Each is fetched or computed only
//! when its bytes are needed, once, verified, shared by everybody who needs it, and dropped when
//! nobody does. It speaks BuildKit's gRPC API, so `buildctl`, `docker buildx` and programs on
//! BuildKit's Go client only change an address.
//!
//! # Rows
//!
//! Modules stand in rows. A module uses lower rows only: not its own row and never a higher one.
//! The `mod` lines below stand in this order and a unit test holds the rule by reading the
//! `crate::` paths.
//!
//! | row | module | what it is |
//! |---|---|---|
//! | 12 | `cli` | the command for people |
//! | 11 | `daemon` | configuration into running services; stops them in order |
//! | 10 | `control` | BuildKit's Control API, build history and health |
//! |    | `gateway` | the LLB bridge that a frontend calls |
//! |    | `client` | the client's side of the protocol, for the command |
//! | 9 | `solver` | runs a graph once for many jobs; finds, keeps and falls back from cache hits |
//! | 8 | `ops` | what each vertex does; LLB in |
//! |   | `export` | a ref becomes an image, an archive, a directory or a push |
//! | 7 | `cache` | filesystem states and their lifetime |
//! |   | `executor` | runs a process in a root file system |
//! | 6 | `content` | blobs: resident or remote |
//! |   | `snapshot` | directories from layers |
//! | 5 | `registry` | talks to OCI registries |
//! | 4 | `ctx` | what a request carries: session group, progress, cancellation |
//! | 3 | `session` | calls back into the build client over its tunnel |
//! | 2 | `lease`, `progress`, `identity` | who still needs what; what is happening; who the daemon is |
//! | 1 | `oci`, `db`, `task`, `proto` | spec values; the embedded store; owned tasks; generated code |
//! |   | `archive` | tar archives and their compression |
//! |   | `fs` | file system work beneath a root |
//! |   | `pattern` | wildcards, and lists of patterns as a `.dockerignore` has them |
//! | 0 | `failpoint` | where a test kills, fails or delays the process |
//!
//! Generated protobuf types appear only in `service.rs`, `convert.rs`, `llb.rs` and in `session/`.
//!
//! # Follow one push
//!
//! A client sends a graph whose only vertex is `docker-image://r.example/base:v1` and asks for the
//! result to be pushed under another name.
//!
//! 1. `control/service.rs` turns the request into a job; `solver` runs the graph. For the vertex it asks
//!    `ops/image.rs` for a cache map, which resolves the tag with the rights of the client's session:
//!    the only requests so far are for a manifest and a config.
//! 2. `ops/worker.rs` makes a ref: `cache` notes a record per layer in one transaction. Nobody has
//!    fetched a byte of a layer. The vertex's `CacheOpts` keep one `DescHandler` per layer, which knows
//!    how to get it.
//! 3. `export/image.rs` makes a manifest and a config, and `export/push.rs` asks the target for each
//!    blob, then for a mount from every repository that is known to have it.
//! 4. Only a blob that the target neither has nor mounts is read: `content/stream.rs` passes it through
//!    from its origin, hashed on the way, never on disk. An export that needs the bytes here goes
//!    through `content/fetch.rs` instead: one task per blob whatever asks, verified before it is seen.
//!
//! # Follow one step
//!
//! The graph goes on: a command runs on the image, and its result is pushed beside it.
//!
//! 1. `ops/exec.rs` asks `cache` for something to write on top of the image: only now anybody needs bytes.
//!    `cache/materialize.rs` fetches the blobs of all layers at once, each with the rights of whoever asks,
//!    and `snapshot/apply.rs` unpacks each one while it arrives, into a directory of its own. Their order is
//!    given when they are mounted. A snapshot is committed only after the digest and the diff ID held.
//! 2. `executor` runs the command in the mounted tree. What it wrote lies in the snapshot's own directory, is
//!    settled, so that it says by itself what changed (`cache/settle.rs`), and becomes a record with one commit:
//!    its files, no blob yet.
//! 3. `export` asks the state for its layers. Those of the image are what they were, as lazy as they
//!    were; for the new one `snapshot/diff.rs` lists what changed, and `cache/layers.rs` writes it as an
//!    archive, compressed on all cores and hashed on the way into the store.
//! 4. If that turns out large, `export/push/ahead.rs` sends it to the target while it is written, from the
//!    store's file (`content/growing.rs`), and tells its digest at the end. A small one is looked for first.
//! 5. The push mounts the image's layers, and uploads the new blob unless it has arrived by then.
//!
//! Whether a blob is here and whether a layer's files are here are two facts that don't depend on each
//! other: a step on unpacked files needs no blob, and a push of a blob no files.
//!
//! # Follow one path
//!
//! Another step copies `/etc/os-release` out of the image, which nobody has unpacked yet.
//!
//! 1. The solver wants the content of what is copied for its cache key. `ops/reads.rs` says which paths that
//!    is, and `cache/paths.rs` looks for them from the top layer down: a layer is fetched and unpacked only if
//!    those above it leave open what is at the path. A link leads on, from the top again.
//! 2. The layers that decided are mounted, without the others: at these paths the tree is that of the image.
//! 3. A step that writes to `/etc/app/` on the image looks at its paths in the same way (`ops/file/onto.rs`),
//!    and its change set lies over the layers that cover them.
//! 4. What a layer has was noted while it was unpacked. `cache/indexes.rs` keeps that when the files are pruned,
//!    so that the next look opens the layers that cover the path and none of those above.
//! 5. Of those, too, a part can be enough: directories and links come from what was noted, and the bytes of a file from
//!    the ranges of the blob that have them, where a member of its compression begins (`cache/paths/part.rs`). They are
//!    verified by states that the SHA-256 of the layer went through (`archive/checks.rs`). What can't be had so, or
//!    would not save much, is the whole layer.
//!
//! # What lies where
//!
//! | below the root | what | written by |
//! |---|---|---|
//! | `buildkitd.lock` | held by the running daemon | `daemon/lock.rs` |
//! | `workerid` | the ID that clients see, kept over restarts | `daemon/worker_id.rs` |
//! | `thunk.redb` | blobs and their origins, lease rows, cache records, cache keys, snapshots, names of images, history | `db`, one writer |
//! | `content/` | an OCI image layout: `blobs/<algorithm>/<hex>`, files 0444, whole and verified | `content/disk.rs` |
//! | `content/ingest/` | partial blobs; the length of a file is how far it came | `content/ingest.rs` |
//! | `indexes/` | what layers have that were unpacked once, by diff ID | `cache/indexes.rs` |
//! | `snapshots/overlayfs/`, `snapshots/native/` | directories of layers and of steps, by key | `snapshot/store.rs` |
//!
//! # What is not here
//!
//! There is no clustering, and none is meant to come: results travel through registries, and content
//! addresses are the same on every node.

// Row 0.
pub mod failpoint;
// Row 1.
pub mod archive;
pub mod db;
pub mod fs;
pub mod oci;
pub mod pattern;
pub mod proto;
pub mod task;
// Row 2.
pub mod identity;
pub mod lease;
pub mod progress;
// Row 3.
pub mod session;
// Row 4.
pub mod ctx;
// Row 5.
pub mod registry;
// Row 6.
pub mod content;
pub mod snapshot;
// Row 7.
pub mod cache;
pub mod executor;
// Row 8.
pub mod export;
pub mod ops;
// Row 9.
pub mod solver;
// Row 10.
pub mod client;
pub mod control;
pub mod gateway;
// Row 11.
pub mod daemon;
// Row 12.
pub mod cli;

#[cfg(test)]
mod rows;
