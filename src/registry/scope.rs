//! [`Scopes`]: what a token is asked for (Docker token specification, "scope").

use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// A set of rights, equal however it was put together.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(super) struct Scopes {
    /// Actions by `type:name`.
    resources: BTreeMap<String, BTreeSet<String>>,
    /// What is not `type:name:actions`, as it is.
    others: BTreeSet<String>,
}

impl Scopes {
    pub fn pull(repository: &str) -> Scopes {
        Scopes::parse(&format!("repository:{repository}:pull"))
    }

    pub fn push(repository: &str) -> Scopes {
        Scopes::parse(&format!("repository:{repository}:pull,push"))
    }

    /// Reads scopes apart by spaces, as a challenge has them.
    pub fn parse(text: &str) -> Scopes {
        let mut scopes = Scopes::default();
        for scope in text.split_ascii_whitespace() {
            // The name of a repository may have a colon: `repository:host:5000/name:pull`.
            let parts = scope.rsplit_once(':').filter(|(resource, _)| resource.contains(':'));
            let (resource, actions) = parts.unwrap_or((scope, ""));
            let mut actions = actions.split(',').filter(|action| !action.is_empty()).peekable();
            if actions.peek().is_some() {
                let known = scopes.resources.entry(resource.to_owned()).or_default();
                known.extend(actions.map(str::to_owned));
            } else {
                scopes.others.insert(scope.to_owned());
            }
        }
        scopes
    }

    pub fn and(mut self, other: &Scopes) -> Scopes {
        for (resource, actions) in &other.resources {
            self.resources.entry(resource.clone()).or_default().extend(actions.iter().cloned());
        }
        self.others.extend(other.others.iter().cloned());
        self
    }

    /// True if a token for `self` is one for `other` as well.
    pub fn cover(&self, other: &Scopes) -> bool {
        let covers = |(resource, actions): (&String, &BTreeSet<String>)| {
            self.resources.get(resource).is_some_and(|own| own.contains("*") || actions.is_subset(own))
        };
        other.resources.iter().all(covers) && other.others.is_subset(&self.others)
    }

    /// One text for each resource, as they are sent.
    pub fn texts(&self) -> Vec<String> {
        let text = |(resource, actions): (&String, &BTreeSet<String>)| {
            let actions: Vec<_> = actions.iter().map(String::as_str).collect();
            format!("{resource}:{}", actions.join(","))
        };
        self.resources.iter().map(text).chain(self.others.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mount_asks_for_both_repositories_in_one_token() {
        let union = Scopes::push("to").and(&Scopes::pull("from")).and(&Scopes::pull("to"));
        assert_eq!(union.texts(), ["repository:from:pull", "repository:to:pull,push"]);
        assert!(union.cover(&Scopes::pull("from")) && union.cover(&Scopes::push("to")));
        assert!(!union.cover(&Scopes::push("from")) && !Scopes::push("to").cover(&union));
    }

    #[test]
    fn scopes_of_any_shape_are_kept() {
        for text in ["repository:host:5000/a:pull", "registry:catalog:*", "repository(plugin):a:pull", "aws"]
        {
            assert_eq!(Scopes::parse(text).texts(), [text]);
        }
        assert!(Scopes::parse("repository:a:*").cover(&Scopes::push("a")));
        assert!(Scopes::default().texts().is_empty() && Scopes::pull("a").cover(&Scopes::default()));
    }

    proptest! {
        #[test]
        fn a_union_covers_its_parts_and_order_does_not_count(a in "[a-c:, *]{0,30}", b in "[a-c:, *]{0,30}") {
            let (a, b) = (Scopes::parse(&a), Scopes::parse(&b));
            let union = a.clone().and(&b);
            prop_assert_eq!(&union, &b.clone().and(&a));
            prop_assert!(union.cover(&a) && union.cover(&b));
            prop_assert_eq!(Scopes::parse(&union.texts().join(" ")), union);
        }
    }
}
