//! Merge: layers of several inputs on top of each other. Reads nothing, so that lazy inputs give a
//! lazy result.

use serde::Serialize;

use super::cache_map::CacheMap;
use super::cache_map::CacheOpts;
use super::cache_map::InputKey;
use super::op::Merge;
use super::operate::OpError;
use crate::cache::Cache;
use crate::cache::CacheError;
use crate::cache::ImmutableRef;
use crate::cache::RefOptions;
use crate::ctx::Ctx;
use crate::oci::Digest;

impl Merge {
    /// What the key of the vertex is made of, when it has `inputs` inputs.
    pub(super) fn cache_map(&self, inputs: usize) -> CacheMap<ImmutableRef> {
        let inputs = (0..inputs).map(|_| InputKey::default()).collect();
        CacheMap { digest: self.cache_key(), inputs, opts: CacheOpts::new(), complete: true }
    }

    /// The key of the op itself; its inputs add theirs.
    fn cache_key(&self) -> Digest {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Key {
            r#type: &'static str,
            merge: Inputs,
        }
        #[derive(Serialize)]
        struct Inputs {
            inputs: Vec<Input>,
        }
        #[derive(Serialize)]
        struct Input {
            #[serde(skip_serializing_if = "is_zero")]
            input: usize,
        }
        let inputs = self.inputs.iter().map(|input| Input { input: *input }).collect();
        let key = Key { r#type: "buildkit.merge.v0", merge: Inputs { inputs } };
        // Plain strings and numbers can't fail to be written.
        Digest::sha256(serde_json::to_vec(&key).unwrap_or_default())
    }

    /// The merge of what is not empty; none of nothing, and of one input that input.
    pub(super) async fn run(
        &self,
        cache: &Cache,
        ctx: &Ctx,
        name: &str,
        inputs: &[Option<ImmutableRef>],
    ) -> Result<Option<ImmutableRef>, OpError> {
        let mut parents = Vec::with_capacity(self.inputs.len());
        for input in self.inputs.iter().filter_map(|n| inputs.get(*n)?.as_ref()) {
            parents.push(input.alone(ctx).await.map_err(OpError::failed)?);
        }
        let options = RefOptions { description: name.to_owned(), ..RefOptions::default() };
        match cache.merge(&parents, options).await {
            Ok(merged) => Ok(Some(merged)),
            Err(CacheError::Empty) => Ok(None),
            Err(error) => Err(OpError::failed(error)),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_zero(value: &usize) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_that_of_the_json_that_other_builders_hash() {
        let expected = r#"{"Type":"buildkit.merge.v0","Merge":{"inputs":[{},{"input":1}]}}"#;
        assert_eq!(Merge { inputs: vec![0, 1] }.cache_key(), Digest::sha256(expected));
    }
}
