//! Authorities that are replaced while the agent runs.

use super::*;

impl Running {
    /// Waits for news of this object.
    async fn until_known(&mut self, name: &str) {
        loop {
            if let Event::Changes(changes) = self.next().await
                && changes.iter().any(|change| change.checked.object.name == name)
            {
                return;
            }
        }
    }

    async fn until_degraded(&mut self, text: &str) {
        loop {
            if let Event::Degraded(line) = self.next().await
                && line.contains(text)
            {
                return;
            }
        }
    }
}

fn service(name: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80}]}})
}

/// The server's certificate comes before the file with its authority, or behind it; each time all connections end.
#[tokio::test]
async fn a_new_authority_is_trusted_once_its_file_is_there() {
    let authorities = [(); 2].map(|()| Authority::new(&PKCS_ECDSA_P256_SHA256).unwrap());
    let pairs = authorities.each_ref().map(|one| one.server(&["127.0.0.1"], &PKCS_ECDSA_P256_SHA256).unwrap());
    let secure = Secure::start(&pairs[0], "h2", None).await;
    secure.directory.write("ca.crt", &authorities[0].certificate());
    let path = secure.kubeconfig("server: https://127.0.0.1:PORT\ncertificate-authority: ca.crt", "token: secret");
    let mut running = Running::start(options(&path)).await.unwrap();
    assert_eq!(running.synced().await, Ok(()));
    let Secure { double, mut front, directory } = secure;
    let address = front.address();
    for (round, is_file_first) in [false, true, true, true].into_iter().enumerate() {
        let next = (round + 1) % 2;
        drop(front);
        if is_file_first {
            directory.write("ca.crt", &authorities[next].certificate());
        }
        let role = Role::Tls(server_config(&pairs[next], "h2", None).unwrap(), double.address());
        front = Front::start(address, role).unwrap();
        double.apply(service(&format!("s-{round}")));
        if !is_file_first {
            running.until_degraded("invalid peer certificate").await;
            directory.write("ca.crt", &authorities[next].certificate());
        }
        running.until_known(&format!("s-{round}")).await;
    }
}
