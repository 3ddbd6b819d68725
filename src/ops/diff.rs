//! Diff: what one file system has and another one has not. Stays lazy where the lower one is what the upper one
//! stands on.

use serde::Serialize;

use super::cache_map::CacheMap;
use super::cache_map::CacheOpts;
use super::cache_map::InputKey;
use super::op::DiffOp;
use super::operate::OpError;
use crate::cache::Cache;
use crate::cache::CacheError;
use crate::cache::ImmutableRef;
use crate::cache::RefOptions;
use crate::ctx::Ctx;
use crate::oci::Digest;

impl DiffOp {
    /// How the op and the `inputs` of its vertex count: as they are.
    pub(super) fn cache_map(&self, inputs: usize) -> CacheMap<ImmutableRef> {
        let inputs = (0..inputs).map(|_| InputKey::default()).collect();
        CacheMap { digest: self.key(), inputs, opts: CacheOpts::new(), complete: true }
    }

    /// The digest of the JSON that BuildKit hashes.
    fn key(&self) -> Digest {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Key {
            r#type: &'static str,
            diff: Sides,
        }
        #[derive(Serialize)]
        struct Sides {
            lower: Side,
            upper: Side,
        }
        #[derive(Serialize)]
        struct Side {
            #[serde(skip_serializing_if = "is_zero")]
            input: i64,
        }
        let side = |input: Option<usize>| Side { input: input.and_then(|n| n.try_into().ok()).unwrap_or(-1) };
        let diff = Sides { lower: side(self.lower), upper: side(self.upper) };
        // Plain texts and numbers can't fail to be written.
        Digest::sha256(serde_json::to_vec(&Key { r#type: "buildkit.diff.v0", diff }).unwrap_or_default())
    }

    /// What is empty is none, on either side and in the result.
    pub(super) async fn run(
        &self,
        cache: &Cache,
        ctx: &Ctx,
        name: &str,
        inputs: &[Option<ImmutableRef>],
    ) -> Result<Option<ImmutableRef>, OpError> {
        let side = |input: Option<usize>| input.and_then(|n| inputs.get(n)).and_then(Option::as_ref);
        let options = RefOptions { description: name.to_owned(), ..RefOptions::default() };
        let alone = async |side: Option<&ImmutableRef>| match side {
            Some(state) => state.alone(ctx).await.map(Some),
            None => Ok(None),
        };
        let diff = async {
            let (lower, upper) = (alone(side(self.lower)).await?, alone(side(self.upper)).await?);
            cache.diff(ctx, lower.as_ref(), upper.as_ref(), options).await
        };
        match diff.await {
            Ok(difference) => Ok(difference),
            Err(CacheError::Cancelled) => Err(OpError::Cancelled),
            Err(error) => Err(self.failed(inputs, error)),
        }
    }

    /// Blames the side whose bytes are gone: the one that names one of them.
    fn failed(&self, inputs: &[Option<ImmutableRef>], error: CacheError) -> OpError {
        let sides = [self.upper, self.lower];
        let mut present = sides.into_iter().flatten().filter(|n| matches!(inputs.get(*n), Some(Some(_))));
        let lost = |n: usize, error: &CacheError| match OpError::of_input(n, error.clone()) {
            OpError::InputGone { digests, .. } => {
                let input = inputs[n].as_ref();
                input.is_some_and(|input| input.blobs().any(|layer| digests.contains(&layer.blob.digest)))
            }
            _ => false,
        };
        match present.find(|n| lost(*n, &error)) {
            Some(input) => OpError::of_input(input, error),
            None => OpError::failed(error),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts were written by BuildKit's Go types.
    #[test]
    fn the_key_is_that_of_the_json_that_other_builders_hash() {
        let key = |lower, upper| DiffOp { lower, upper }.key();
        let expected = r#"{"Type":"buildkit.diff.v0","Diff":{"lower":{},"upper":{"input":-1}}}"#;
        assert_eq!(key(Some(0), None), Digest::sha256(expected));
        let expected = r#"{"Type":"buildkit.diff.v0","Diff":{"lower":{},"upper":{"input":1}}}"#;
        assert_eq!(key(Some(0), Some(1)), Digest::sha256(expected));
    }
}
