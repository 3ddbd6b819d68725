//! Where a daemon listens.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// `unix:///path`
    Unix(PathBuf),
    /// `tcp://host:port`
    Tcp(String),
    /// `fd://`: the first socket that the service manager hands over.
    Activated,
}

/// Where the debug page listens: `host:port`, or `unix:///path`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DebugAddress {
    Tcp(String),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!("the address {text:?} has no scheme: did you mean unix://{text}?"));
        };
        match scheme {
            "unix" if rest.is_empty() => Err(format!("the address {text:?} has no path")),
            "unix" => Ok(Address::Unix(PathBuf::from(rest))),
            "tcp" => host_and_port(rest).map(Address::Tcp),
            "fd" if rest.is_empty() => Ok(Address::Activated),
            "fd" => {
                Err(format!("the address {text:?} selects a socket: only fd://, the first one, is there"))
            }
            _ => {
                Err(format!("the address {text:?} has an unknown scheme: expected unix://, tcp:// or fd://"))
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Tcp(host) => write!(f, "tcp://{host}"),
            Address::Activated => f.write_str("fd://"),
        }
    }
}

impl FromStr for DebugAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<DebugAddress, String> {
        match text.split_once("://") {
            Some(("unix", path)) if !path.is_empty() => Ok(DebugAddress::Unix(PathBuf::from(path))),
            Some(("tcp", rest)) => host_and_port(rest).map(DebugAddress::Tcp),
            Some(_) => Err(format!("expected host:port or unix:///path, found {text:?}")),
            None if text.starts_with('/') => Ok(DebugAddress::Unix(PathBuf::from(text))),
            None => host_and_port(text).map(DebugAddress::Tcp),
        }
    }
}

/// A name or an address, and a port. Names are looked up when the daemon listens.
fn host_and_port(text: &str) -> Result<String, String> {
    let expected = || format!("expected host:port, found {text:?}");
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    port.parse::<u16>().map_err(|_| expected())?;
    if host.contains([':', '/', ' ']) {
        return Err(expected());
    }
    // Go listens on every address if there is no host.
    Ok(if host.is_empty() { format!("[::]:{port}") } else { text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in ["unix:///run/a.sock", "tcp://127.0.0.1:1", "tcp://[::1]:1", "tcp://name:1", "fd://"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("tcp://:1234".parse::<Address>().unwrap().to_string(), "tcp://[::]:1234");
        for text in ["", "a", "unix://", "tcp://a", "tcp://a:b", "tcp://a:99999", "fd://3", "npipe://a"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        let debug = |text: &str| text.parse::<DebugAddress>();
        assert_eq!(debug("0.0.0.0:6060"), Ok(DebugAddress::Tcp("0.0.0.0:6060".into())));
        assert_eq!(debug("/run/debug.sock"), Ok(DebugAddress::Unix("/run/debug.sock".into())));
        assert!(debug("debug").is_err());
    }
}
