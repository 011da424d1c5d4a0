//! Connections of a namespace, passed on to a server that it can't reach.

use std::io;
use std::net::{Shutdown, TcpListener};

use socket2::Socket;

/// Passes every connection on to what `connect` returns, until the process ends.
pub fn relay(listener: &TcpListener, connect: impl Fn() -> io::Result<Socket>) {
    for client in listener.incoming().map_while(Result::ok) {
        if let Err(error) = connect().and_then(|server| pass(client.into(), server)) {
            eprintln!("a connection was not relayed: {error}");
        }
    }
}

/// Copies both ways, each on a thread of its own, until both sides have ended.
fn pass(client: Socket, server: Socket) -> io::Result<()> {
    client.set_tcp_nodelay(true)?;
    let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
    for (mut from, mut to) in [(from_client, to_server), (server, client)] {
        std::thread::Builder::new().spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        })?;
    }
    Ok(())
}
