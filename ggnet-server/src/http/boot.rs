//! What booting machines ask for: scripts, boot files, and a place to report failures. No token; every rule is core's `boot::decide`.

use axum::{
    extract::{ConnectInfo, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use ggnet_core::{
    Error,
    error::code,
    nouns::{Firmware, MacAddr},
    orchestrator::{BootAnswer, BootRequest},
    ports::BootPath,
};
use serde::Deserialize;

use super::{
    Endpoints, Shared,
    error::{Answer, Failure},
    extract::{ValidPath, ValidQuery},
    request_id,
};

/// What a script says of the machine that reads it.
#[derive(Debug, Default, Deserialize)]
pub struct ScriptQuery {
    /// iPXE's `${platform}`: `pcbios` or `efi`.
    platform: Option<String>,
}

/// A failure, as iPXE reports it.
#[derive(Debug, Deserialize)]
pub struct ReportQuery {
    stage: String,
    #[serde(default)]
    errno: String,
}

const SCRIPT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

fn script_response(text: String) -> Response {
    // A script carries credentials of one generation; nobody may keep it.
    let headers =
        [(header::CONTENT_TYPE, SCRIPT), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    (headers, text).into_response()
}

/// `GET /boot/first.ipxe`.
pub async fn first(
    State(app): State<Shared>,
    ConnectInfo(ends): ConnectInfo<Endpoints>,
    headers: HeaderMap,
) -> Answer<Response> {
    Ok(script_response(app.orchestrator.sessions().first_script(&app.advertise.to(&ends, &headers)?)?))
}

/// `GET /boot/{mac}.ipxe`; HEAD prepares nothing.
pub async fn script(
    State(app): State<Shared>,
    ConnectInfo(ends): ConnectInfo<Endpoints>,
    ValidPath(file): ValidPath<String>,
    ValidQuery(query): ValidQuery<ScriptQuery>,
    method: Method,
    headers: HeaderMap,
) -> Answer<Response> {
    let mac: MacAddr = file
        .strip_suffix(".ipxe")
        .ok_or_else(|| Error::new(code::path_not_found(), "Boot scripts are at /boot/<mac>.ipxe"))?
        .parse()?;
    let firmware = match query.platform.as_deref() {
        Some("efi") => Firmware::Uefi,
        Some("pcbios") => Firmware::Bios,
        _ => Firmware::Unknown,
    };
    let request = BootRequest {
        mac,
        firmware,
        peer: Some(ends.peer.ip().to_string()),
        request_id: request_id::of(&headers),
        advertised: app.advertise.to(&ends, &headers)?,
        prepare: method != Method::HEAD,
    };
    match app.orchestrator.sessions().boot(request).await.map_err(Failure::to_ipxe)? {
        BootAnswer::Script(text) => Ok(script_response(text)),
        BootAnswer::Retry(after) => {
            let after = [(header::RETRY_AFTER, after.as_secs().max(1).to_string())];
            Ok((StatusCode::SERVICE_UNAVAILABLE, after, "Starting; come again\n").into_response())
        }
    }
}

/// `GET /boot/{mac}/report?stage=…&errno=…`. The answer is an empty script, so that it can be chained to.
pub async fn report(
    State(app): State<Shared>,
    ValidPath(mac): ValidPath<MacAddr>,
    ValidQuery(query): ValidQuery<ReportQuery>,
) -> Answer<Response> {
    let short = |s: String| s.chars().filter(|c| !c.is_control()).take(200).collect();
    app.orchestrator.diagnoses().boot_failed(mac, short(query.stage), short(query.errno)).await?;
    Ok(script_response("#!ipxe\n".to_owned()))
}

/// `GET /files/{path}`: the same boot files that TFTP serves.
pub async fn file(State(app): State<Shared>, ValidPath(path): ValidPath<String>) -> Answer<Response> {
    let path: BootPath = path.parse()?;
    let bytes = app.orchestrator.read().boot_file(&path).await?;
    let kind = HeaderValue::from_static("application/octet-stream");
    Ok(([(header::CONTENT_TYPE, kind)], bytes).into_response())
}
