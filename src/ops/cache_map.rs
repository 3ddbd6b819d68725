//! [`CacheMap`]: how a vertex counts for the cache, and [`CacheOpts`]: what helps to load its result.

use std::any::Any;
use std::any::TypeId;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::operate::OpError;
use crate::ctx::Ctx;
use crate::oci::Digest;

/// How an op and each of its inputs enter the cache key.
#[derive(Clone, Debug)]
pub struct CacheMap<R> {
    /// Of what the op does, its inputs left out.
    pub digest: Digest,
    /// One per input of the vertex.
    pub inputs: Vec<InputKey<R>>,
    /// Never part of a key.
    pub opts: CacheOpts,
    /// False if the op has a further map. Only an op without inputs may have several: each is another
    /// name for the same result, the next one harder to find out than the one before.
    pub complete: bool,
}

/// How one input enters the cache key.
#[derive(Clone)]
pub struct InputKey<R> {
    /// The part of the input that counts, where the op says so.
    pub selector: Option<Digest>,
    /// Hashes what counts of the input's result, where the content matters more than its origin.
    pub content: Option<ContentDigest<R>>,
}

impl<R> Default for InputKey<R> {
    fn default() -> InputKey<R> {
        InputKey { selector: None, content: None }
    }
}

impl<R> fmt::Debug for InputKey<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InputKey")
            .field("selector", &self.selector)
            .field("content", &self.content.is_some())
            .finish()
    }
}

/// Hashes the part of a result that counts. `None` is the empty file system.
pub type ContentDigest<R> =
    Arc<dyn Fn(Ctx, Option<R>) -> BoxFuture<'static, Result<Digest, OpError>> + Send + Sync>;

/// A map by type of what a vertex knows that helps to load a result: at most one value of each type.
/// Clones share the values.
///
/// The entry of an image source is its `DescHandlers`: for each blob, who can provide its bytes.
#[derive(Clone, Default)]
pub struct CacheOpts(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl CacheOpts {
    pub fn new() -> CacheOpts {
        CacheOpts::default()
    }

    /// These options and `value`, in place of another of its type.
    pub fn with<T: Any + Send + Sync>(mut self, value: T) -> CacheOpts {
        self.0.insert(TypeId::of::<T>(), Arc::new(value));
        self
    }

    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.0.get(&TypeId::of::<T>())?.downcast_ref()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for CacheOpts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheOpts({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_by_their_type() {
        let opts = CacheOpts::new().with(1u8).with("text").with(2u8);
        assert_eq!(opts.get::<u8>(), Some(&2));
        assert_eq!(opts.get::<&str>(), Some(&"text"));
        assert_eq!(opts.get::<u16>(), None);
    }
}
