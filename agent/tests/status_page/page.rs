//! The page in a browser.

use serde_json::json;

use crate::browser::Browser;
use crate::cluster::{HOSTILE_NAME, HOSTILE_NAMESPACE, HOSTILE_PORT, HOSTILE_SLICE, server};

const ROWS: &str = "document.querySelectorAll('#services tbody tr').length";
const FIRST: &str = "document.querySelector('#services tbody tr')?.innerText";
/// The brightness of a colour that the browser computed, `rgb(1, 2, 3)`.
const BRIGHTNESS: &str = "match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0)";

fn opened() -> Option<Browser> {
    let browser = Browser::start()?;
    browser.open(&format!("http://{}/", server()));
    browser.wait_until(&format!("{ROWS} === 50 && document.querySelectorAll('#plot rect').length === 4"));
    Some(browser)
}

#[test]
fn the_page_shows_the_state_and_pages_through_the_services() {
    let Some(browser) = opened() else { return };
    assert_eq!(browser.value("document.title"), "vmap-proxy on node-1");
    assert_eq!(browser.value("document.querySelector('#state').textContent"), "everything is programmed");
    assert_eq!(browser.value("document.querySelector('#numbers dd').textContent"), "100,000");
    assert_eq!(browser.value("document.querySelectorAll('#plot rect.failed').length"), 1);
    let about = browser.value("document.querySelector('#about').textContent");
    assert!(about.as_str().unwrap().contains("Digest of the state: 0000000000000000"), "{about}");
    browser.screenshot("wide");
    // Forward, and back again.
    let first = browser.value(FIRST);
    browser.click("#next");
    browser.wait_until("document.querySelector('#page').textContent === 'page 2'");
    assert_ne!(browser.value(FIRST), first);
    browser.click("#previous");
    browser.wait_until("document.querySelector('#page').textContent === 'page 1'");
    assert_eq!(browser.value(FIRST), first);
    assert_eq!(browser.value("document.querySelector('#previous').disabled"), true);
    browser.click("#counters summary");
    browser.wait_until("document.querySelectorAll('#counters tbody tr').length > 20");
    assert_eq!(browser.errors(), Vec::<String>::new());
}

#[test]
fn a_search_leads_to_a_service_and_an_explanation() {
    let Some(browser) = opened() else { return };
    browser.write("#search input", "backend-076543");
    browser.wait_until(&format!("{ROWS} === 1"));
    browser.click("#services button.name");
    browser.wait_until("document.querySelector('#service').innerText.includes('10.131.42.255:8080')");
    let text = browser.value("document.querySelector('#service').innerText").as_str().unwrap().to_owned();
    for part in ["Service team-043/backend-076543", "10.2.42.255:80/TCP", "programmed", "1 in 1"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    browser.write("#explain input[name=from]", "outside");
    browser.write("#explain input[name=to]", "svc:team-043/backend-076543");
    browser.click("#explain button");
    browser.wait_until("document.querySelector('#answer strong')?.textContent === 'goes to an endpoint'");
    browser.click("#answer summary");
    browser.wait_until("document.querySelector('#answer pre').innerText.includes('vmap @services')");
    browser.screenshot("explained");
    browser.write("#explain input[name=to]", "nonsense");
    browser.click("#explain button");
    browser.wait_until("document.querySelector('#answer .bad')?.textContent.includes('ADDRESS:PORT')");
    // The browser logs the reply 400, and nothing else.
    let errors = browser.errors();
    assert!(errors.len() == 1 && errors[0].contains("400"), "{errors:?}");
}

#[test]
fn names_with_html_stay_text() {
    let Some(browser) = opened() else { return };
    let name = format!("{HOSTILE_NAMESPACE}/{HOSTILE_NAME}");
    assert!(browser.value(FIRST).as_str().unwrap().contains(&name));
    browser.click("#services button.name");
    browser.wait_until("!document.querySelector('#service').hidden");
    browser.write("#explain input[name=from]", "outside");
    browser.write("#explain input[name=to]", "10.1.0.0:80");
    browser.click("#explain button");
    browser.wait_until("document.querySelector('#answer strong')");
    browser.click("#answer summary");
    let text = browser.value("document.body.textContent").as_str().unwrap().to_owned();
    for part in [&name, HOSTILE_PORT, HOSTILE_SLICE, "<b>refused</b> by the kernel"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    browser.screenshot("hostile");
    // No element came of them, no script ran.
    assert_eq!(browser.value("document.querySelectorAll('img, b, svg[onload]').length"), 0);
    assert_eq!(browser.value("document.scripts.length"), 1);
    assert_eq!(browser.value("document.title"), "vmap-proxy on node-1");
    assert_eq!(browser.errors(), Vec::<String>::new());
    // And if a later script forgot about text, the browser would refuse.
    let markup = json!(HOSTILE_NAME);
    let refused = browser.value(&format!(
        "(() => {{ try {{ document.body.innerHTML = {markup}; return 'taken'; }} catch (error) {{ return error.name; }} }})()"
    ));
    assert_eq!(refused, "TypeError");
}

#[test]
fn the_page_fits_a_phone_and_the_dark() {
    let Some(browser) = opened() else { return };
    let brightness =
        |of: &str| browser.value(&format!("getComputedStyle(document.body).{of}.{BRIGHTNESS}")).as_i64().unwrap();
    assert!(brightness("backgroundColor") > brightness("color"));
    let phone = json!({ "width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": true });
    browser.devtools("Emulation.setDeviceMetricsOverride", &phone);
    let dark = json!({ "features": [{ "name": "prefers-color-scheme", "value": "dark" }] });
    browser.devtools("Emulation.setEmulatedMedia", &dark);
    browser.click("#services button.name");
    browser.wait_until("!document.querySelector('#service').hidden");
    assert!(brightness("backgroundColor") < brightness("color"));
    assert_eq!(browser.value("window.innerWidth"), 360);
    assert_eq!(browser.value("document.documentElement.scrollWidth"), 360, "the page is wider than the phone");
    browser.screenshot("phone-service");
    browser.value("window.scrollTo(0, 0)");
    browser.screenshot("phone");
    assert_eq!(browser.errors(), Vec::<String>::new());
}
