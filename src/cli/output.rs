//! `--output type=oci,dest=out.tar`, as `buildctl` spells it.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::str::FromStr;

use crate::client::Destination;
use crate::client::Output;

/// `--output` as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct OutputFlag(Output);

impl OutputFlag {
    /// The output, if its bytes have a place to go to.
    pub(super) fn output(self) -> Result<Output, String> {
        if self.0.destination == Destination::Stdout && std::io::stdout().is_terminal() {
            return Err(format!(
                "--output type={}: there is no dest, and an archive is not for a terminal",
                self.0.exporter
            ));
        }
        if let Destination::File(path) = &self.0.destination
            && let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty())
            && let Err(error) = std::fs::metadata(directory)
        {
            return Err(format!("{path:?} can't be written: {}: {error}", directory.display()));
        }
        Ok(self.0)
    }
}

impl FromStr for OutputFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<OutputFlag, String> {
        let mut exporter = None;
        let mut attributes = BTreeMap::new();
        for field in fields(text)? {
            let (key, value) =
                field.split_once('=').ok_or_else(|| format!("expected key=value, found {field:?}"))?;
            let key = key.trim().to_ascii_lowercase();
            match key.as_str() {
                "" => return Err(format!("expected key=value, found {field:?}")),
                "type" => exporter = Some(value.to_owned()),
                "output" => return Err(format!("there is no key output: did you mean dest={value}?")),
                _ => {
                    attributes.insert(key, value.to_owned());
                }
            }
        }
        let exporter = exporter.filter(|name| !name.is_empty()).ok_or("expected type=<exporter>")?;
        let destination = match exporter.as_str() {
            "oci" | "docker" | "tar" => {
                let is_directory = exporter != "tar"
                    && attributes
                        .get("tar")
                        .is_some_and(|tar| matches!(tar.to_ascii_lowercase().as_str(), "false" | "0" | "f"));
                match attributes.remove("dest") {
                    None if is_directory => {
                        return Err("tar=false needs a dest, which is a directory".to_owned());
                    }
                    Some(dest) if is_directory && dest != "-" && !dest.is_empty() => {
                        Destination::Layout(PathBuf::from(dest))
                    }
                    Some(dest) if is_directory => {
                        return Err(format!("tar=false needs a dest that is a directory, found {dest:?}"));
                    }
                    None => Destination::Stdout,
                    Some(dest) if dest == "-" => Destination::Stdout,
                    Some(dest) if dest.is_empty() => return Err("dest is empty".to_owned()),
                    Some(dest) => Destination::File(PathBuf::from(dest)),
                }
            }
            "image" => match attributes.remove("dest") {
                None => Destination::Daemon,
                Some(dest) => {
                    return Err(format!("an image has no dest, found {dest:?}: use name=, and push=true"));
                }
            },
            "local" => {
                let delete = match attributes.get("mode").map(String::as_str) {
                    None | Some("copy") => false,
                    Some("delete") => true,
                    Some(mode) => return Err(format!("there is no mode={mode}: expected copy or delete")),
                };
                match attributes.remove("dest").filter(|dest| !dest.is_empty()) {
                    Some(dest) => Destination::Directory { path: PathBuf::from(dest), delete },
                    None => return Err("type=local needs a dest, which is a directory".to_owned()),
                }
            }
            other => {
                return Err(format!("there is no type={other}: expected image, oci, docker, tar or local"));
            }
        };
        Ok(OutputFlag(Output { exporter, attributes, destination }))
    }
}

/// The fields of one CSV record: a field that begins with a quote ends with one, and has two for one inside.
fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let field;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut value = String::new();
            let mut inside = quoted;
            loop {
                let Some((part, after)) = inside.split_once('"') else {
                    return Err("a quote is not closed".to_owned());
                };
                value.push_str(part);
                match after.strip_prefix('"') {
                    Some(more) => {
                        value.push('"');
                        inside = more;
                    }
                    None => {
                        inside = after;
                        break;
                    }
                }
            }
            field = value;
            rest = inside;
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            field = rest[..end].to_owned();
            rest = &rest[end..];
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None if rest.is_empty() => return Ok(fields),
            None => return Err(format!("expected a comma, found {rest:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Output, String> {
        text.parse::<OutputFlag>().map(|flag| flag.0)
    }

    #[test]
    fn outputs_are_spelled_as_for_buildctl() {
        let oci = parse("type=oci,dest=/tmp/a.tar,compression=zstd").unwrap();
        assert_eq!(oci.destination, Destination::File("/tmp/a.tar".into()));
        assert_eq!(oci.attributes, BTreeMap::from([("compression".to_owned(), "zstd".to_owned())]));
        let image = parse(r#"type=image,"name=a:1,b:2",push=true"#).unwrap();
        assert_eq!(image.attributes["name"], "a:1,b:2");
        assert_eq!(image.destination, Destination::Daemon);
        let layout = parse("type=oci,tar=false,dest=d").unwrap();
        assert_eq!(layout.destination, Destination::Layout("d".into()));
        assert_eq!(layout.attributes["tar"], "false", "the daemon has to know it as well");
        assert_eq!(parse("type=docker").unwrap().destination, Destination::Stdout);
        assert_eq!(parse("type=docker,dest=-").unwrap().destination, Destination::Stdout);
    }

    #[test]
    fn an_archive_goes_into_a_directory_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let to = |name: &str| format!("type=oci,dest={}", dir.path().join(name).display());
        let output = |text: &str| text.parse::<OutputFlag>().unwrap().output();
        assert!(output(&to("x.tar")).is_ok());
        assert!(output("type=oci,dest=x.tar").is_ok());
        let refused = output(&to("no/x.tar")).unwrap_err();
        assert!(refused.contains("no/x.tar") && refused.contains("No such file"), "{refused}");
    }

    #[test]
    fn a_bad_output_says_what_is_expected() {
        let texts = [
            "",
            "oci",
            "dest=x",
            "type=",
            "type=oci,=x",
            "type=oci,output=x",
            "type=oci,dest=",
            "type=oci,tar=false",
            "type=oci,tar=false,dest=-",
            "type=image,dest=x",
            "type=local",
            "type=local,dest=x,mode=move",
            "type=floppy",
            "type=oci,\"dest=x",
            "type=oci,\"dest=x\"y",
        ];
        let said: Vec<String> =
            texts.iter().map(|text| format!("{text}\n    {}", parse(text).unwrap_err())).collect();
        insta::with_settings!({ omit_expression => true }, {
            insta::assert_snapshot!(said.join("\n"));
        });
    }

    proptest! {
        #[test]
        fn quoted_fields_come_back(values in prop::collection::vec("[a-z,\"= ]{0,8}", 1..5)) {
            let text: Vec<String> =
                values.iter().map(|v| format!("\"{}\"", v.replace('"', "\"\""))).collect();
            prop_assert_eq!(fields(&text.join(",")).unwrap(), values);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[a-z,=\" ]{0,24}") {
            let _ = parse(&text);
        }
    }
}
