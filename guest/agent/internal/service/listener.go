package service

import (
	"net"

	"lcow.dev/agent/internal/session"
)

// listener gives the ttrpc server one session at a time: the next is accepted when the one before is over.
type listener struct {
	service  *Service
	acceptor *session.Acceptor
	current  *session.Conn
}

func (l *listener) Accept() (net.Conn, error) {
	if l.current != nil {
		<-l.current.Done()
		l.service.setConn(nil)
		l.service.lease.disconnected()
	}
	conn, err := l.acceptor.Accept()
	if err != nil {
		return nil, err
	}
	l.current = conn
	l.service.lease.connected()
	l.service.setConn(conn)
	return conn, nil
}

func (l *listener) Close() error { return nil }

func (l *listener) Addr() net.Addr { return (*session.Conn)(nil).LocalAddr() }

func (s *Service) setConn(conn *session.Conn) {
	s.connMu.Lock()
	defer s.connMu.Unlock()
	s.conn = conn
}
