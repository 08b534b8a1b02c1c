//! The audit of changes over HTTP: it names the token, the client's address and its request.

mod support;

use ggnet_core::registry::Registry;
use ggnet_server::{config::Config, serve::Server};
use serde_json::{Value, json};
use support::{answer, get};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_has_its_token_its_address_and_its_request_in_the_audit() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let text = format!(
        "data_dir = {data:?}\n[http]\nlisten = \"127.0.0.1:0\"\n[target]\nlisten = [\"127.0.0.1:0\"]\n"
    );
    let mut registry = Registry::new();
    ggnet_backends::register(&mut registry);
    let server = Server::start(&Config::parse(&text, "test").unwrap(), &registry).await.unwrap();
    server.keep_token().await.unwrap();
    let (http, token) = (server.http, server.new_token.as_ref().unwrap().expose().to_owned());
    let ask = async |method: &str, path: &str, id: &str, body: Value| {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {http}\r\nAuthorization: Bearer {token}\r\nx-request-id: {id}\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        answer(http, request).await
    };
    let rows = async || {
        let page: Value = serde_json::from_str(&get(http, "/api/v1/audit", &token).await).unwrap();
        page["items"].as_array().unwrap().clone()
    };

    let new = json!({ "name": "pc-1", "macs": ["52:54:00:aa:00:01"] });
    let made = ask("POST", "/api/v1/machines", "mine-1", new).await;
    assert!(made.starts_with("HTTP/1.1 201") && made.contains("x-request-id: mine-1\r\n"), "{made}");
    let row = rows().await.remove(0);
    let by = json!({ "kind": "token", "name": "admin", "from": "127.0.0.1", "request": "mine-1" });
    assert_eq!((&row["by"], &row["action"]), (&by, &json!("machine.create")));
    assert_eq!((&row["after"]["name"], &row["before"]), (&json!("pc-1"), &Value::Null));
    assert_eq!(row["subject"], json!({ "kind": "machine", "id": row["after"]["id"] }));

    // The server replaces an id that is not plain, because it could corrupt a log.
    let changed = ask("PATCH", "/api/v1/machines/pc-1", "not plain", json!({ "description": "x" })).await;
    assert!(changed.starts_with("HTTP/1.1 200") && !changed.contains("not plain"), "{changed}");
    let row = rows().await.remove(0);
    let id = row["by"]["request"].as_str().unwrap();
    assert!(changed.contains(&format!("x-request-id: {id}\r\n")), "{id}: {changed}");
    assert_eq!((&row["before"]["description"], &row["after"]["description"]), (&json!(""), &json!("x")));

    // The server's own changes are in the audit, too.
    let own: Vec<Value> = rows().await.into_iter().filter(|row| row["by"]["kind"] == "system").collect();
    let actions: Vec<&str> = own.iter().map(|row| row["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["token.reset", "instance.remember"]);
    server.stop().await;
}
