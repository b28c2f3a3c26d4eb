//! The agent's metrics on a loopback port.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use crate::support::Host;

/// Asks until somebody listens, on a thread of its own: the courier has the test's.
fn ask(port: u16) -> mpsc::Receiver<String> {
    let (answer, answered) = mpsc::channel();
    std::thread::spawn(move || {
        let mut stream = loop {
            match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                Ok(stream) => break stream,
                Err(_) => std::thread::yield_now(),
            }
        };
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        answer.send(text).ok();
    });
    answered
}

fn answer(host: &Host) -> String {
    let answered = ask(host.settings.metrics.port.unwrap());
    let mut text = None;
    host.run_until("the collector has its answer", || {
        text = text.take().or_else(|| answered.try_recv().ok());
        text.is_some()
    });
    text.unwrap()
}

#[test]
fn what_the_agent_writes_is_passed_on_while_it_is_fresh() {
    let mut host = Host::new();
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    host.settings.metrics.port = Some(free.local_addr().unwrap().port());
    drop(free);
    let text = answer(&host);
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("cannot read what the agent writes"), "{text}");
    let file = host.file("run/metrics.prom", "rekindle_info 1\n");
    let text = answer(&host);
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nrekindle_info 1\n"), "{text}");
    let old = SystemTime::now() - Duration::from_secs(90);
    std::fs::File::options().append(true).open(file).unwrap().set_modified(old).unwrap();
    let text = answer(&host);
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("more than a minute"), "{text}");
}
