// Package guestpb is generated from proto/guest.proto: the messages and the ttrpc service between host and guest.
package guestpb

//go:generate sh -c "cd ../.. && ../../node_modules/.bin/buf generate ../../proto --path ../../proto/guest.proto"
