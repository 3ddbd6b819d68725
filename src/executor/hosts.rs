//! The `/etc/hosts` and `/etc/resolv.conf` that a process sees.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::Dns;
use super::ExecError;
use super::ExtraHost;

/// Of a process that names none.
pub const DEFAULT_HOSTNAME: &str = "buildkitsandbox";

/// Files of the sandbox that every process sees in its root. They are mounted there.
pub const OWN_FILES: [&str; 2] = [RESOLV_CONF, "/etc/hosts"];

/// Of the host, and where the process sees its own.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What systemd-resolved asks, behind the loopback address that it gives to programs.
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";
const RESOLVED: &str = "127.0.0.53";
/// Where the host names none that can be reached from the process.
const PUBLIC: [&str; 4] = ["8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"];

pub fn hosts(hostname: &str, extra: &[ExtraHost]) -> String {
    let hostname = if hostname.is_empty() { DEFAULT_HOSTNAME } else { hostname };
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for ExtraHost { host, address } in extra {
        let _ = writeln!(text, "{address}\t{host}");
    }
    text
}

/// From the host's file. `host_network`: loopback addresses of the host are the process's own.
pub fn resolv_conf(dns: &Dns, host_network: bool) -> Result<String, ExecError> {
    let host = read(Path::new(RESOLV_CONF))?;
    let host = if !host_network && nameservers(&host).eq([RESOLVED]) {
        read(Path::new(RESOLVED_CONF))?
    } else {
        host
    };
    Ok(rewrite(&host, dns, host_network))
}

fn read(path: &Path) -> Result<String, ExecError> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(ExecError::io("read", path)(error)),
    }
}

/// Keyword and what follows, of the lines that are not comments.
fn directives(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter(|line| !line.starts_with(['#', ';'])).filter_map(|line| {
        let line = line.trim();
        let (keyword, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        (!keyword.is_empty()).then(|| (keyword, rest.trim()))
    })
}

fn nameservers(text: &str) -> impl Iterator<Item = &str> {
    directives(text)
        .filter(|(k, _)| *k == "nameserver")
        .filter_map(|(_, v)| v.split_ascii_whitespace().next())
}

fn rewrite(host: &str, dns: &Dns, host_network: bool) -> String {
    let usable = |server: &&str| {
        let address = server.split('%').next().unwrap_or_default().parse::<IpAddr>();
        address.is_ok_and(|address| host_network || !address.is_loopback())
    };
    let mut servers: Vec<&str> = dns.nameservers.iter().map(String::as_str).collect();
    if servers.is_empty() {
        servers = nameservers(host).filter(usable).collect();
    }
    if servers.is_empty() {
        servers = PUBLIC.to_vec();
    }
    let mut search: Vec<&str> = Vec::new();
    let mut options: Vec<&str> = Vec::new();
    let mut rest: Vec<(&str, &str)> = Vec::new();
    for (keyword, value) in directives(host) {
        match keyword {
            "nameserver" => {}
            // The last one counts.
            "search" | "domain" if !value.is_empty() => search = value.split_ascii_whitespace().collect(),
            "options" => options.extend(value.split_ascii_whitespace()),
            "search" | "domain" => {}
            _ => rest.push((keyword, value)),
        }
    }
    if !dns.search_domains.is_empty() {
        search = dns.search_domains.iter().map(String::as_str).filter(|d| *d != ".").collect();
    }
    if !dns.options.is_empty() {
        options = dns.options.iter().map(String::as_str).collect();
    }
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    for (keyword, words) in [("search", search), ("options", options)] {
        if !words.is_empty() {
            let _ = writeln!(text, "{keyword} {}", words.join(" "));
        }
    }
    for (keyword, value) in rest {
        let _ = writeln!(text, "{keyword} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# by hand\nnameserver 127.0.0.1\nnameserver 10.0.0.1\nsearch a.example\n\
        search b.example c.example\noptions ndots:2\noptions edns0\nsortlist 1.2.3.4\n";

    #[test]
    fn loopback_servers_are_dropped_and_the_rest_is_kept() {
        let text = rewrite(HOST, &Dns::default(), false);
        assert_eq!(
            text,
            "nameserver 10.0.0.1\nsearch b.example c.example\noptions ndots:2 edns0\nsortlist 1.2.3.4\n"
        );
    }

    #[test]
    fn the_network_of_the_host_has_its_loopback_servers() {
        let text = rewrite(HOST, &Dns::default(), true);
        assert!(text.starts_with("nameserver 127.0.0.1\nnameserver 10.0.0.1\n"), "{text}");
    }

    #[test]
    fn without_a_server_public_ones_are_asked() {
        let text = rewrite("nameserver 127.0.0.53\nnameserver nonsense\n", &Dns::default(), false);
        assert!(text.starts_with("nameserver 8.8.8.8\n"), "{text}");
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn the_configuration_replaces_what_it_names() {
        let dns = Dns {
            nameservers: vec!["127.0.0.9".into()],
            options: vec!["rotate".into()],
            search_domains: vec![".".into(), "x".into()],
        };
        let text = rewrite(HOST, &dns, false);
        assert_eq!(text, "nameserver 127.0.0.9\nsearch x\noptions rotate\nsortlist 1.2.3.4\n");
    }

    #[test]
    fn extra_hosts_follow_the_name_of_the_process() {
        let extra = [ExtraHost { host: "db".into(), address: "10.1.2.3".parse().expect("an address") }];
        let text = hosts("box", &extra);
        let expected = "127.0.0.1\tlocalhost box\n::1\tlocalhost ip6-localhost ip6-loopback\n10.1.2.3\tdb\n";
        assert_eq!(text, expected);
        assert!(hosts("", &[]).starts_with("127.0.0.1\tlocalhost buildkitsandbox\n"));
    }
}
