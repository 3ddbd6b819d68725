//! Platforms (image specification, `image-index.md`), normalised as containerd does.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use serde::Deserialize;
use serde::Serialize;

use super::descriptor::null_is_default;

/// An operating system on a processor, in normal form.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    #[serde(
        rename = "os.features",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub os_features: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// A text is not `os/architecture[/variant]`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("platform {text:?} is not <os>/<architecture>[/<variant>]")]
pub struct InvalidPlatform {
    pub text: String,
}

impl Platform {
    /// The platform that this process runs on.
    pub fn host() -> Platform {
        static HOST: LazyLock<Platform> = LazyLock::new(|| {
            let (os, architecture) = (std::env::consts::OS.to_owned(), std::env::consts::ARCH.to_owned());
            Platform { os, architecture, ..Platform::default() }.normalised()
        });
        HOST.clone()
    }

    /// Go's names, and the variant only where it says something.
    pub fn normalised(mut self) -> Platform {
        self.os = match self.os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            os => os.to_owned(),
        };
        let variant = self.variant.to_ascii_lowercase();
        let (architecture, variant) =
            match (self.architecture.to_ascii_lowercase().as_str(), variant.as_str()) {
                ("i386" | "x86" | "386", v) => ("386".to_owned(), v.to_owned()),
                ("x86_64" | "x86-64" | "amd64", v) => {
                    ("amd64".to_owned(), if v == "v1" { String::new() } else { v.to_owned() })
                }
                ("aarch64" | "arm64", v) => (
                    "arm64".to_owned(),
                    if matches!(v, "8" | "v8" | "v8.0") { String::new() } else { v.to_owned() },
                ),
                ("armhf", _) => ("arm".to_owned(), "v7".to_owned()),
                ("armel", _) => ("arm".to_owned(), "v6".to_owned()),
                ("arm", "" | "7") => ("arm".to_owned(), "v7".to_owned()),
                ("arm", v @ ("5" | "6" | "8")) => ("arm".to_owned(), format!("v{v}")),
                (architecture, v) => (architecture.to_owned(), v.to_owned()),
            };
        self.architecture = architecture;
        self.variant = variant;
        self
    }

    /// How well `offered` serves `self`: 0 is exact, larger is worse, `None` does not serve.
    ///
    /// A processor runs what older ones of its family run: `arm/v7` runs `v6` and `v5`, `amd64/v3`
    /// runs `v2` and the base level, `arm64` runs 32-bit ARM as a last resort.
    pub fn match_rank(&self, offered: &Platform) -> Option<u32> {
        let wanted = self.clone().normalised();
        let offered = offered.clone().normalised();
        if wanted.os != offered.os
            || (!wanted.os_version.is_empty()
                && !offered.os_version.is_empty()
                && wanted.os_version != offered.os_version)
        {
            return None;
        }
        let level = |variant: &str, base: u32| match variant.strip_prefix('v') {
            None if variant.is_empty() => Some(base),
            Some(n) => n.split('.').next().and_then(|n| n.parse().ok()),
            None => None,
        };
        match (wanted.architecture.as_str(), offered.architecture.as_str()) {
            (a, b) if a == b => {
                if wanted.variant == offered.variant {
                    return Some(0);
                }
                let base = match a {
                    "amd64" => 1,
                    "arm" => 7,
                    "arm64" => 8,
                    _ => return None,
                };
                let (w, o) = (level(&wanted.variant, base)?, level(&offered.variant, base)?);
                // Ranks of 10 and more, so that a lower minor version of one level comes after equality.
                w.checked_sub(o).map(|below| 1 + below * 10)
            }
            ("arm64", "arm") => Some(1000 + 8u32.saturating_sub(level(&offered.variant, 7)?) * 10),
            ("amd64", "386") => None,
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Platform, InvalidPlatform> {
        let invalid = || InvalidPlatform { text: text.chars().take(160).collect() };
        let parts: Vec<&str> = text.split('/').collect();
        let legal = |p: &&str| {
            !p.is_empty()
                && p.len() <= 64
                && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(legal) {
            return Err(invalid());
        }
        Ok(Platform {
            os: parts[0].to_owned(),
            architecture: parts[1].to_owned(),
            variant: parts.get(2).copied().unwrap_or_default().to_owned(),
            ..Platform::default()
        }
        .normalised())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_brought_to_the_normal_form() {
        for (text, normal) in [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/riscv64", "linux/riscv64"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), normal);
        }
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_processor_runs_older_levels_and_never_newer_ones() {
        let rank = |w: &str, o: &str| w.parse::<Platform>().unwrap().match_rank(&o.parse().unwrap());
        assert_eq!(rank("linux/arm/v7", "linux/arm/v7"), Some(0));
        assert!(rank("linux/arm/v7", "linux/arm/v6") < rank("linux/arm/v7", "linux/arm/v5"));
        assert_eq!(rank("linux/arm/v6", "linux/arm/v7"), None);
        assert_eq!(rank("linux/amd64", "linux/amd64/v2"), None);
        assert!(rank("linux/amd64/v3", "linux/amd64").is_some());
        assert_eq!(rank("linux/amd64", "linux/386"), None);
        assert_eq!(rank("linux/s390x", "linux/s390x/v9"), None);
    }
}
