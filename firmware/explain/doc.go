// Package explain says why a launch digest differs from the predicted one: it
// tries the differences that people really meet, alone and two at a time, and
// names the smallest one under which prediction and platform agree.
//
// A match proves what differs, because the digest is cryptographic. No match
// proves nothing but that the difference is none of those that were tried; their
// number is told.
package explain
