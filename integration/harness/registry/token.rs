//! The token server: `GET /token` (Docker token specification) and `POST /token` (its OAuth2 form).

use http::StatusCode;
use serde_json::json;

use super::access::Caller;
use super::body::Aborted;
use super::reply::Reply;
use super::serve::Exchange;
use super::target::Query;

const FORM_LIMIT: usize = 64 * 1024;

pub(super) async fn serve(exchange: &mut Exchange) -> Result<Reply, Aborted> {
    match exchange.method.as_str() {
        "GET" => Ok(get(exchange)),
        "POST" => post(exchange).await,
        _ => Ok(Reply::error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "GET or POST")),
    }
}

fn get(exchange: &Exchange) -> Reply {
    let query = &exchange.target.query;
    let user = match &exchange.caller {
        Caller::Nobody => String::new(),
        Caller::User(user) => user.clone(),
        Caller::Refused | Caller::Token { .. } => return refused(),
    };
    let offline = query.get("offline_token") == Some("true");
    grant(exchange, query, &user, offline)
}

async fn post(exchange: &mut Exchange) -> Result<Reply, Aborted> {
    let Some(body) = exchange.body.collect(FORM_LIMIT).await? else {
        return Ok(Reply::error(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", "the form is too long"));
    };
    let form = Query::parse(&String::from_utf8_lossy(&body));
    let field = |name| form.get(name).unwrap_or_default();
    let caller = {
        let access = exchange.shared.access();
        match field("grant_type") {
            "password" => access.login(field("username"), field("password")),
            "refresh_token" => access.refresh(field("refresh_token")),
            _ => {
                return Ok(Reply::json(StatusCode::BAD_REQUEST, &json!({"error": "unsupported_grant_type"})));
            }
        }
    };
    let Caller::User(user) = caller else { return Ok(refused()) };
    exchange.entry.update(|request| request.user = Some(user.clone()));
    let offline = field("access_type") == "offline" || field("grant_type") == "refresh_token";
    Ok(grant(exchange, &form, &user, offline))
}

fn grant(exchange: &Exchange, query: &Query, user: &str, offline: bool) -> Reply {
    let scopes: Vec<String> = query.all("scope").flat_map(str::split_whitespace).map(str::to_owned).collect();
    let mut access = exchange.shared.access();
    let token = access.issue(user, &scopes);
    let mut answer = json!({
        "token": token,
        "access_token": token,
        "expires_in": access.token_life.as_secs(),
        "issued_at": jiff::Timestamp::now().to_string(),
    });
    if offline && !user.is_empty() {
        answer["refresh_token"] = access.issue_refresh_token(user).into();
    }
    drop(access);
    exchange.entry.update(|request| request.scopes = scopes);
    Reply::json(StatusCode::OK, &answer)
}

fn refused() -> Reply {
    Reply::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "incorrect username or password")
}
