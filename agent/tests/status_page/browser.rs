//! Headless Chromium, driven by chromedriver over the WebDriver protocol: HTTP
//! with JSON, <https://www.w3.org/TR/webdriver2/>.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Names of the browser's program, the usual one first.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];

/// The browser writes to no place but its own directory, and calls nobody.
const ARGUMENTS: [&str; 10] = [
    "--headless",
    "--window-size=1100,1400",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// Longest wait for something to appear on a page, in milliseconds.
const PATIENCE: u32 = 120_000;

/// A browser with one window. It ends when dropped.
pub(crate) struct Browser {
    driver: Child,
    base: String,
    session: String,
    _profile: TempDir,
}

/// The program of this name in `PATH`.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|program| program.is_file())
}

impl Browser {
    /// Starts a browser; `None`, after a loud line, if this machine has none.
    pub(crate) fn start() -> Option<Self> {
        let browser = BROWSERS.into_iter().find_map(program);
        let (Some(browser), Some(driver)) = (browser, program("chromedriver")) else {
            let why = "there is no Chromium with chromedriver here (Debian: apt-get install chromium chromium-driver)";
            assert!(std::env::var("BROWSER_TESTS").as_deref() != Ok("required"), "{why}");
            // Past the test runner's capture, which hides the output of tests that pass.
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "SKIPPED, the status page was not opened: {why}");
            return None;
        };
        let mut driver = Command::new(driver).arg("--port=0").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.unwrap();
            let (_, port) = line.split_once("was started successfully on port ")?;
            Some(port.trim_end_matches('.').to_owned())
        });
        // It must not block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let profile = tempfile::tempdir().unwrap();
        let base = format!("http://127.0.0.1:{}", port.unwrap());
        let mut started = Self { driver, base, session: String::new(), _profile: profile };
        let own = format!("--user-data-dir={}", started._profile.path().display());
        let arguments: Vec<&str> = ARGUMENTS.into_iter().chain([own.as_str()]).collect();
        let answer = started.call(
            "POST",
            "/session",
            &json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "binary": browser, "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
            "timeouts": { "script": PATIENCE },
        } } }),
        );
        started.session = answer["sessionId"].as_str().unwrap().to_owned();
        Some(started)
    }

    fn try_call(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let request = http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        let request = request.header("content-type", "application/json").body(Full::from(body)).unwrap();
        runtime.block_on(async {
            let client = Client::builder(TokioExecutor::new()).build_http::<Full<hyper::body::Bytes>>();
            let response = client.request(request).await.map_err(|error| error.to_string())?;
            let status = response.status();
            let text = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
            let mut answer: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
            if status.is_success() { Ok(answer["value"].take()) } else { Err(answer["value"]["message"].to_string()) }
        })
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_call(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    #[track_caller]
    fn command(&self, name: &str, body: &Value) -> Value {
        self.call("POST", &format!("/session/{}/{name}", self.session), body)
    }

    /// Opens a page.
    #[track_caller]
    pub(crate) fn open(&self, url: &str) {
        self.command("url", &json!({ "url": url }));
    }

    /// The value of a JavaScript expression in the page.
    #[track_caller]
    pub(crate) fn value(&self, expression: &str) -> Value {
        self.command("execute/sync", &json!({ "script": format!("return {expression};"), "args": [] }))
    }

    /// Waits until an expression is true; it is evaluated again at each change of
    /// the document.
    #[track_caller]
    pub(crate) fn wait_until(&self, expression: &str) {
        let script = format!(
            "const done = arguments[0]; \
             const observer = new MutationObserver(check); \
             function check() {{ if ({expression}) {{ observer.disconnect(); done(true); }} }} \
             observer.observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }}); \
             check();"
        );
        let body = json!({ "script": script, "args": [] });
        let came = self.try_call("POST", &format!("/session/{}/execute/async", self.session), &body);
        if let Err(error) = came {
            let seen = self.value("document.body.innerText");
            panic!("{expression}: {error}; the page has {seen}");
        }
    }

    fn element(&self, selector: &str) -> String {
        let found = self.command("element", &json!({ "using": "css selector", "value": selector }));
        let id = found.as_object().and_then(|found| found.values().next()).and_then(Value::as_str);
        id.unwrap_or_else(|| panic!("no {selector}")).to_owned()
    }

    /// Clicks at an element, as a person does: it has to be visible.
    #[track_caller]
    pub(crate) fn click(&self, selector: &str) {
        let element = self.element(selector);
        self.command(&format!("element/{element}/click"), &json!({}));
    }

    /// Types into a field, in place of what is there.
    #[track_caller]
    pub(crate) fn write(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        self.command(&format!("element/{element}/clear"), &json!({}));
        self.command(&format!("element/{element}/value"), &json!({ "text": text }));
    }

    /// A command of the DevTools protocol.
    #[track_caller]
    pub(crate) fn devtools(&self, command: &str, parameters: &Value) {
        self.command("goog/cdp/execute", &json!({ "cmd": command, "params": parameters }));
    }

    /// Writes a picture of the window to the directory of the test's files, to be
    /// looked at.
    #[track_caller]
    pub(crate) fn screenshot(&self, name: &str) {
        let picture = self.call("GET", &format!("/session/{}/screenshot", self.session), &Value::Null);
        let bytes = STANDARD.decode(picture.as_str().unwrap()).unwrap();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("status-page-{name}.png"));
        fs::write(&path, bytes).unwrap();
        eprintln!("picture: {}", path.display());
    }

    /// Errors and violations of the page's policy since the last call.
    #[track_caller]
    pub(crate) fn errors(&self) -> Vec<String> {
        let log = self.command("se/log", &json!({ "type": "browser" }));
        let errors = log.as_array().unwrap().iter().filter(|line| line["level"] == "SEVERE");
        errors.map(|line| line["message"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.try_call("DELETE", &format!("/session/{}", self.session), &Value::Null);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
