//! Who may do what: users, grants, and the tokens that carry them.

use std::collections::HashMap;
use std::collections::HashSet;
use std::time::Duration;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// How the registry asks for credentials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Everybody may do everything.
    #[default]
    Open,
    /// `Basic`, on every request.
    Basic,
    /// `Bearer` with a token server at `/token` of the same address.
    Bearer,
}

/// What a user may do in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    Pull,
    /// Pull as well.
    Push,
    /// Pull and push as well.
    Delete,
}

impl Right {
    fn includes(self, wanted: Right) -> bool {
        self as u8 >= wanted as u8
    }

    /// The word that a scope has for it.
    pub fn action(self) -> &'static str {
        self.actions().last().expect("every right has actions")
    }

    fn actions(self) -> &'static [&'static str] {
        match self {
            Self::Pull => &["pull"],
            Self::Push => &["pull", "push"],
            Self::Delete => &["pull", "push", "delete"],
        }
    }
}

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// No credential at all.
    Nobody,
    /// A credential that isn't valid (any more).
    Refused,
    User(String),
    /// The holder of a token: its user ("" if it was given to nobody in particular), and what it allows.
    Token {
        user: String,
        allowed: HashSet<(String, String)>,
    },
}

impl Caller {
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Nobody | Self::Refused => None,
            Self::User(user) | Self::Token { user, .. } => {
                Some(user).filter(|user| !user.is_empty()).map(String::as_str)
            }
        }
    }
}

struct Token {
    user: String,
    allowed: HashSet<(String, String)>,
    expires: Instant,
}

/// The token server's memory.
pub(super) struct Access {
    pub auth: Auth,
    pub token_life: Duration,
    users: HashMap<String, String>,
    grants: HashMap<(String, String), Right>,
    tokens: HashMap<String, Token>,
    refresh_tokens: HashMap<String, String>,
    issued: u64,
}

impl Access {
    pub fn new(auth: Auth, token_life: Duration) -> Self {
        Self {
            auth,
            token_life,
            users: HashMap::new(),
            grants: HashMap::new(),
            tokens: HashMap::new(),
            refresh_tokens: HashMap::new(),
            issued: 0,
        }
    }

    pub fn add_user(&mut self, user: &str, password: &str) {
        assert!(!user.is_empty(), "the user without a name is everybody");
        self.users.insert(user.to_owned(), password.to_owned());
    }

    /// The user "" is everybody, the repository "*" any.
    pub fn allow(&mut self, user: &str, repository: &str, right: Right) {
        self.grants.insert((user.to_owned(), repository.to_owned()), right);
    }

    pub fn deny(&mut self, user: &str, repository: &str) {
        self.grants.remove(&(user.to_owned(), repository.to_owned()));
    }

    pub fn expire_tokens(&mut self) {
        self.tokens.clear();
    }

    pub fn revoke_refresh_tokens(&mut self) {
        self.refresh_tokens.clear();
    }

    pub fn caller(&self, authorization: Option<&str>) -> Caller {
        let Some(authorization) = authorization else { return Caller::Nobody };
        match authorization.split_once(' ') {
            Some((scheme, value)) if scheme.eq_ignore_ascii_case("basic") => self.basic(value),
            Some((scheme, value)) if scheme.eq_ignore_ascii_case("bearer") => {
                match self.tokens.get(value.trim()) {
                    Some(token) if token.expires > Instant::now() => {
                        Caller::Token { user: token.user.clone(), allowed: token.allowed.clone() }
                    }
                    _ => Caller::Refused,
                }
            }
            _ => Caller::Refused,
        }
    }

    /// The user whose name and password these are.
    pub fn login(&self, user: &str, password: &str) -> Caller {
        let known = self.users.get(user).is_some_and(|right| right == password);
        if known { Caller::User(user.to_owned()) } else { Caller::Refused }
    }

    fn basic(&self, value: &str) -> Caller {
        let decoded = STANDARD.decode(value.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        match decoded.as_deref().and_then(|pair| pair.split_once(':')) {
            Some((user, password)) => self.login(user, password),
            None => Caller::Refused,
        }
    }

    /// Whether `caller` may do that now. A token must name it, and the grant must still stand.
    pub fn permits(&self, caller: &Caller, repository: &str, right: Right) -> bool {
        match (self.auth, caller) {
            (Auth::Open, _) => true,
            (_, Caller::Refused) => false,
            (Auth::Basic, Caller::Nobody) => self.granted("", repository, right),
            (Auth::Basic, Caller::User(user)) => self.granted(user, repository, right),
            (Auth::Bearer, Caller::Token { user, allowed }) => {
                let action = right.action();
                allowed.contains(&(repository.to_owned(), action.to_owned()))
                    && self.granted(user, repository, right)
            }
            (Auth::Basic, Caller::Token { .. }) | (Auth::Bearer, _) => false,
        }
    }

    /// Whether `caller` may know that there is a registry (`GET /v2/`).
    pub fn admits(&self, caller: &Caller) -> bool {
        match self.auth {
            Auth::Open => true,
            Auth::Basic => matches!(caller, Caller::User(_)),
            Auth::Bearer => matches!(caller, Caller::Token { .. }),
        }
    }

    fn granted(&self, user: &str, repository: &str, right: Right) -> bool {
        let holds = |user: &str, repository: &str| {
            let grant = self.grants.get(&(user.to_owned(), repository.to_owned()));
            grant.is_some_and(|grant| grant.includes(right))
        };
        [user, ""].into_iter().any(|user| holds(user, repository) || holds(user, "*"))
    }

    /// A token for what of `scopes` (`repository:<name>:<actions>`) the user may do; not an error if
    /// that is nothing.
    pub fn issue(&mut self, user: &str, scopes: &[String]) -> String {
        let mut allowed = HashSet::new();
        for scope in scopes {
            let Some((repository, actions)) = parse_scope(scope) else { continue };
            for right in [Right::Pull, Right::Push, Right::Delete] {
                let action = right.action();
                let asked = actions.split(',').any(|asked| asked == action || asked == "*");
                if asked && self.granted(user, repository, right) {
                    allowed.insert((repository.to_owned(), action.to_owned()));
                }
            }
        }
        let token = self.secret("token");
        let expires = Instant::now() + self.token_life;
        self.tokens.insert(token.clone(), Token { user: user.to_owned(), allowed, expires });
        token
    }

    pub fn issue_refresh_token(&mut self, user: &str) -> String {
        let token = self.secret("refresh");
        self.refresh_tokens.insert(token.clone(), user.to_owned());
        token
    }

    pub fn refresh(&self, token: &str) -> Caller {
        self.refresh_tokens.get(token).map_or(Caller::Refused, |user| Caller::User(user.clone()))
    }

    fn secret(&mut self, kind: &str) -> String {
        self.issued += 1;
        format!("{kind}-{}-{:016x}", self.issued, rand::random::<u64>())
    }
}

/// The repository and the actions of a scope. A repository's name may hold a colon (`host:port/name`).
fn parse_scope(scope: &str) -> Option<(&str, &str)> {
    scope.strip_prefix("repository:")?.rsplit_once(':')
}
