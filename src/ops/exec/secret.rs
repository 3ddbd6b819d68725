//! Secrets of whoever asks for the build.

use super::super::op::ClientFile;
use super::super::op::SecretEnv;
use super::ExecOpError;
use crate::ctx::Ctx;
use crate::session::SecretBytes;

/// The secret as a file; none if it is optional and nobody has it.
pub async fn file(ctx: &Ctx, file: &ClientFile) -> Result<Option<SecretBytes>, ExecOpError> {
    match get(ctx, &file.id).await {
        Err(ExecOpError::SecretMissing { .. }) if file.optional => Ok(None),
        done => done.map(Some),
    }
}

/// `NAME=value` for each; an optional one that nobody has is empty.
pub async fn environment(ctx: &Ctx, wanted: &[SecretEnv]) -> Result<Vec<String>, ExecOpError> {
    let mut variables = Vec::with_capacity(wanted.len());
    for SecretEnv { id, name, optional } in wanted {
        let value = match get(ctx, id).await {
            Ok(secret) => {
                let text = String::from_utf8(secret.reveal().to_vec()).ok().filter(|t| !t.contains('\0'));
                text.ok_or_else(|| ExecOpError::SecretNotText { id: id.clone(), name: name.clone() })?
            }
            Err(ExecOpError::SecretMissing { .. }) if *optional => String::new(),
            Err(error) => return Err(error),
        };
        variables.push(format!("{name}={value}"));
    }
    Ok(variables)
}

async fn get(ctx: &Ctx, id: &str) -> Result<SecretBytes, ExecOpError> {
    let missing = || ExecOpError::SecretMissing { id: id.to_owned() };
    let ask = ctx.sessions().any(|session| async move { session.secret(id).await?.ok_or_else(missing) });
    ctx.run(ask).await.map_err(|cancelled| ExecOpError::Exec(cancelled.into()))?
}
