//! Events over HTTP: read on from a cursor, the newest ones without, and what is refused.

mod support;

use ggnet_core::registry::Registry;
use ggnet_server::{config::Config, serve::Server};
use serde_json::Value;
use support::{answer, get, image};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_read_on_from_a_cursor_and_the_newest_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let text = format!(
        "data_dir = {data:?}\n[http]\nlisten = \"127.0.0.1:0\"\n[target]\nlisten = [\"127.0.0.1:0\"]\n"
    );
    let mut registry = Registry::new();
    ggnet_backends::register(&mut registry);
    let server = Server::start(&Config::parse(&text, "test").unwrap(), &registry).await.unwrap();
    let token = server.new_token.as_ref().unwrap().expose().to_owned();
    let ask = async |query: &str| -> Value {
        let answer = get(server.http, &format!("/api/v1/events?{query}"), &token).await;
        serde_json::from_str(&answer).unwrap()
    };
    assert_eq!(ask("").await["cursor"], Value::Null, "nothing has happened, and no cursor was given");
    image(&server.orchestrator, "debian").await;

    let all = ask("limit=1000").await;
    let items = all["items"].as_array().unwrap();
    let last = items.len() - 1;
    let cursor = |n: usize| items[n]["cursor"].as_str().unwrap();
    assert!(last >= 2, "{all}");
    assert_eq!(all["cursor"], items[last]["cursor"]);
    assert_eq!(ask(&format!("after={}", cursor(0))).await["items"], Value::from(items[1..].to_vec()));
    let ended = ask(&format!("after={}", cursor(last))).await;
    assert_eq!((&ended["items"], &ended["cursor"]), (&Value::Array(vec![]), &items[last]["cursor"]));
    let newest = ask("newest=true&limit=2").await;
    assert_eq!(newest["items"], Value::from(items[last - 1..].to_vec()));
    assert_eq!(newest["cursor"], all["cursor"]);
    // As clients of before have it.
    assert_eq!(ask("after=0").await["items"], all["items"]);

    for (query, code) in [
        ("after=no%20cursor", "cursor_invalid"),
        ("after=another-stores", "cursor_invalid"),
        ("after=e1-ffffffff", "cursor_unknown"),
        ("newest=true&after=0", "invalid"),
    ] {
        let refused = ask(query).await;
        assert_eq!(refused["code"], code, "{refused}");
        assert!(refused["hint"].is_string(), "{refused}");
    }

    // Who follows a machine of which nothing was heard goes on all the same: its cursor would be forgotten one day.
    let body = r#"{"name":"pc-1","macs":["52:54:00:aa:00:01"]}"#;
    let request = format!(
        "POST /api/v1/machines HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        server.http,
        body.len()
    );
    let made = answer(server.http, request).await;
    assert!(made.starts_with("HTTP/1.1 201"), "{made}");
    let heard = ask("machine=pc-1").await;
    assert_eq!(heard["items"].as_array().unwrap().len(), 1, "{heard}");
    // Each change was a transaction of the store.
    let synced = async || -> u64 {
        let metrics = get(server.http, "/metrics", &token).await;
        let line = metrics.lines().find_map(|line| line.strip_prefix("ggnet_store_synced_commits_total "));
        line.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
    };
    let before = synced().await;
    image(&server.orchestrator, "windows").await;
    assert!(synced().await > before);
    let quiet = ask(&format!("machine=pc-1&after={}", heard["cursor"].as_str().unwrap())).await;
    assert_eq!(quiet["items"], Value::Array(vec![]));
    assert_eq!(quiet["cursor"], ask("newest=true&limit=1").await["cursor"]);
    server.stop().await;
}
