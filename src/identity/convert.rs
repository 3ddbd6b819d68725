//! The identity as the protocol tells it.

use super::GcPolicy;
use super::Identity;
use super::Version;
use crate::oci::Platform;
use crate::proto::pb;
use crate::proto::worker;

/// The worker's record.
pub fn worker_record(identity: &Identity) -> worker::WorkerRecord {
    worker::WorkerRecord {
        id: identity.worker.clone(),
        labels: identity.labels.clone(),
        platforms: identity.platforms.iter().map(platform).collect(),
        gc_policy: identity.gc.iter().map(gc_policy).collect(),
        buildkit_version: Some(version(&identity.version)),
        cdi_devices: Vec::new(),
    }
}

/// The daemon's version.
pub fn version(version: &Version) -> worker::BuildkitVersion {
    worker::BuildkitVersion {
        package: version.package.clone(),
        version: version.version.clone(),
        revision: version.revision.clone(),
        dockerfile_version: String::new(),
    }
}

pub fn platform(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

/// A platform that a client names; absent, or without OS and architecture, is this machine's.
pub fn parse_platform(platform: Option<&pb::Platform>) -> Platform {
    match platform {
        Some(p) if !p.os.is_empty() || !p.architecture.is_empty() => Platform {
            architecture: p.architecture.clone(),
            os: p.os.clone(),
            os_version: p.os_version.clone(),
            os_features: p.os_features.clone(),
            variant: p.variant.clone(),
        }
        .normalised(),
        _ => Platform::host(),
    }
}

fn gc_policy(policy: &GcPolicy) -> worker::GcPolicy {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    worker::GcPolicy {
        all: policy.all,
        keep_duration: i64::try_from(policy.keep.as_nanos()).unwrap_or(i64::MAX),
        reserved_space: number(policy.reserved),
        filters: policy.filters.clone(),
        max_used_space: number(policy.max_used),
        min_free_space: number(policy.min_free),
    }
}
