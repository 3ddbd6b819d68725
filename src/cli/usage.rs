//! `thunk du` and `thunk prune`.

use std::time::Duration;
use std::time::SystemTime;

use clap::Args;
use futures::StreamExt as _;

use super::host::Host;
use super::host::HostArgs;
use super::progress::size;
use super::report::CliError;
use crate::client::Prune;
use crate::client::Usage;
use crate::daemon::Space;

#[derive(Clone, Debug, Args)]
pub(super) struct DuArgs {
    /// Show only what matches, such as type==regular (repeatable; one must match)
    #[arg(short, long)]
    filter: Vec<String>,
    #[command(flatten)]
    host: HostArgs,
}

#[derive(Clone, Debug, Args)]
pub(super) struct PruneArgs {
    /// Delete only what matches, such as type==regular (repeatable; one must match)
    #[arg(short, long)]
    filter: Vec<String>,
    /// Delete internal records as well, and what is known of layers that are gone
    #[arg(long)]
    all: bool,
    /// Keep what was used within this time, such as 48h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    keep_duration: Option<Duration>,
    /// Delete until no more than this is left, such as 10GB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    keep_storage: Option<u64>,
    /// Never go below this, such as 1GB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    keep_storage_min: Option<u64>,
    /// Delete until this is free on the disk, such as 20GB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    free_storage: Option<u64>,
    #[command(flatten)]
    host: HostArgs,
}

fn duration(text: &str) -> Result<Duration, String> {
    crate::daemon::parse_duration(text).ok_or_else(|| "expected seconds or a duration such as 48h".to_owned())
}

fn bytes(text: &str) -> Result<u64, String> {
    match crate::daemon::parse_space(text) {
        Some(Space::Bytes(bytes)) => Ok(bytes),
        _ => Err("expected a size such as 512MB or 10GB".to_owned()),
    }
}

pub(super) async fn du(args: DuArgs) -> Result<(), CliError> {
    super::unless_interrupted(async {
        let host = Host::find(args.host).await?;
        let usage = host.client.usage(args.filter).await;
        host.leave().await;
        super::print(table(usage?, SystemTime::now(), "Total").as_bytes())
    })
    .await
}

pub(super) async fn prune(args: PruneArgs) -> Result<(), CliError> {
    super::unless_interrupted(async {
        let host = Host::find(args.host).await?;
        let prune = Prune {
            filters: args.filter,
            all: args.all,
            keep: args.keep_duration.unwrap_or_default(),
            reserved_bytes: args.keep_storage_min.unwrap_or_default(),
            max_used_bytes: args.keep_storage.unwrap_or_default(),
            min_free_bytes: args.free_storage.unwrap_or_default(),
        };
        let deleted = async {
            let mut stream = host.client.prune(prune).await?;
            let mut deleted = Vec::new();
            while let Some(usage) = stream.next().await {
                deleted.push(usage?);
            }
            Ok::<_, CliError>(deleted)
        }
        .await;
        host.leave().await;
        super::print(table(deleted?, SystemTime::now(), "Deleted").as_bytes())
    })
    .await
}

/// One row a record, the largest last, and the sum.
fn table(mut records: Vec<Usage>, now: SystemTime, sum: &str) -> String {
    records.sort_by(|a, b| (a.bytes, &a.id).cmp(&(b.bytes, &b.id)));
    let mut rows = vec![["ID", "SIZE", "LAST USED", "TYPE", "DESCRIPTION"].map(str::to_owned)];
    rows.extend(records.iter().map(|record| {
        let mark = if record.in_use { "*" } else { "" };
        [
            format!("{}{mark}", record.id),
            size(record.bytes),
            record.last_used.map_or_else(|| "never".to_owned(), |time| ago(time, now)),
            record.kind.clone(),
            record.description.clone(),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = String::new();
    if !records.is_empty() {
        for row in &rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
    }
    let total = records.iter().map(|record| record.bytes).fold(0, u64::saturating_add);
    text + &format!("{sum}: {} in {} records\n", size(total), records.len())
}

fn ago(time: SystemTime, now: SystemTime) -> String {
    let seconds = now.duration_since(time).unwrap_or_default().as_secs();
    match seconds {
        0..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        7200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_record_and_a_sum() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let record = |id: &str, bytes, seconds: Option<u64>, in_use| Usage {
            id: id.to_owned(),
            kind: "regular".to_owned(),
            description: "pulled from docker.io/library/alpine:latest".to_owned(),
            bytes,
            in_use,
            shared: false,
            created: None,
            last_used: seconds.map(|s| now - Duration::from_secs(s)),
            used: 1,
            parents: Vec::new(),
        };
        let records = vec![record("large", 12_345_678, Some(7200), true), record("small", 999, None, false)];
        insta::with_settings!({ omit_expression => true }, {
            insta::assert_snapshot!(table(records, now, "Total"));
        });
        assert_eq!(table(Vec::new(), now, "Deleted"), "Deleted: 0 B in 0 records\n");
    }
}
