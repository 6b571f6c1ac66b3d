package igvm

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// file makes an IGVM file of version 1 from variable headers and data behind them.
func file(data []byte, headers ...Header) []byte {
	var vars []byte
	for _, h := range headers {
		vars = le.AppendUint32(vars, uint32(h.Type))
		vars = le.AppendUint32(vars, uint32(len(h.Data)))
		vars = append(vars, h.Data...)
		vars = append(vars, make([]byte, -len(vars)&7)...)
	}
	return seal(1, 24, append(append(make([]byte, 24), vars...), data...), uint32(len(vars)))
}

// seal writes the fixed header over the beginning of a file.
func seal(version, fixed uint32, b []byte, vars uint32) []byte {
	copy(b, magic)
	le.PutUint32(b[4:], version)
	le.PutUint32(b[8:], fixed)
	le.PutUint32(b[12:], vars)
	le.PutUint32(b[16:], uint32(len(b)))
	le.PutUint32(b[20:], checksum(b, uint64(fixed), uint64(fixed), uint64(vars)))
	return b
}

func words(values ...uint32) []byte {
	var b []byte
	for _, v := range values {
		b = le.AppendUint32(b, v)
	}
	return b
}

// The headers that the tests are made of. Mask 2 is the SNP platform's.
func platform(mask uint32, kind byte) Header {
	b := make([]byte, 16)
	le.PutUint32(b, mask)
	b[4], b[5] = 2, kind
	return Header{TypeSupportedPlatform, b}
}

func page(gpa uint64, mask, off, flags uint32, kind uint16) Header {
	b := append(le.AppendUint64(nil, gpa), words(mask, off, flags)...)
	return Header{TypePageData, append(le.AppendUint16(b, kind), 0, 0)}
}

func context(gpa uint64, mask, off uint32) Header {
	return Header{TypeVPContext, append(append(le.AppendUint64(nil, gpa), words(mask, off)...), 0, 0)}
}

func area(size uint64, index uint32) Header {
	return Header{TypeParameterArea, append(le.AppendUint64(nil, size), words(index, 0)...)}
}

func insert(gpa uint64, mask, index uint32) Header {
	return Header{TypeParameterInsert, append(le.AppendUint64(nil, gpa), words(mask, index)...)}
}

// dataAt is where the data of a file with these headers begins.
func dataAt(headers ...Header) uint32 { return uint32(len(file(nil, headers...))) }

// TestDigest follows a file by hand.
func TestDigest(t *testing.T) {
	contents := bytes.Repeat([]byte{7}, sev.PageSize)
	layout := func(off uint32) []Header {
		return []Header{
			platform(1, 1), platform(2, platformSNP),
			page(0x1000, 2, off, 0, dataNormal),
			page(0x2000, 2, 0, 0, dataNormal),
			page(0x3000, 2, off, flagUnmeasured, dataNormal),
			page(0x4000, 2, 0, 0, dataSecrets),
			page(0x5000, 2, 0, 0, dataCPUID),
			page(0x6000, 2, 0, 0, dataCPUIDXF),
			page(0x7000, 1, off, 0, dataNormal), // for another platform
			area(0x2000, 5),
			insert(0x8000, 2, 5),
			insert(0xa000, 1, 5),
			page(0x200000, 2, off, flagLarge, dataNormal),
			{0x307, make([]byte, 3)}, // needs nothing, and is padded
			context(1, 1, off),
			context(sev.VMSAAddress, 2, off),
		}
	}
	off := dataAt(layout(0)...)
	f, err := Parse(file(contents, layout(off)...))
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Headers) != 16 || len(f.Platforms) != 2 || f.Platforms[1] != (Platform{2, platformSNP}) {
		t.Fatalf("%d headers, platforms %+v, want 16 and two platforms", len(f.Headers), f.Platforms)
	}
	sum, zero := sha512.Sum384(contents), sha512.Sum384(make([]byte, sev.PageSize))
	for _, opt := range []Options{{}, {ZeroAsNormal: true}, {FileOrder: true}, {VCPUs: 3}} {
		var want sev.SNPDigest
		want.Extend(sev.PageNormal, 0x1000, sum)
		if opt.ZeroAsNormal {
			want.Extend(sev.PageNormal, 0x2000, zero)
		} else {
			want.Extend(sev.PageZero, 0x2000, zero)
		}
		want.Extend(sev.PageUnmeasured, 0x3000, sum)
		want.Extend(sev.PageSecrets, 0x4000, zero)
		want.Extend(sev.PageCPUID, 0x5000, zero)
		if opt.FileOrder {
			want.Extend(sev.PageCPUID, 0x6000, zero)
		}
		want.Extend(sev.PageUnmeasured, 0x8000, zero)
		want.Extend(sev.PageUnmeasured, 0x9000, zero)
		if !opt.FileOrder { // QEMU holds the page back when the insert comes
			want.Extend(sev.PageCPUID, 0x6000, zero)
		}
		for gpa := uint64(0x200000); gpa < 0x400000; gpa += sev.PageSize {
			if gpa == 0x200000 {
				want.Extend(sev.PageNormal, gpa, sum)
			} else { // the file ends before its last page does
				want.Extend(sev.PageNormal, gpa, zero)
			}
		}
		for range max(1, opt.VCPUs) {
			want.Extend(sev.PageVMSA, sev.VMSAAddress, sum)
		}
		if got, err := f.SNPDigest(opt); err != nil || got != want {
			t.Errorf("%+v: digest %v, %v, want %v", opt, got, err, want)
		}
	}
}

// TestQEMUsOrder: QEMU submits a run of pages when it is broken, an insert at once, and
// takes no header that it has no code for.
func TestQEMUsOrder(t *testing.T) {
	normal := func(gpa uint64) Header { return page(gpa, 2, 1, 0, dataNormal) }
	made := func(opt Options, headers ...Header) sev.SNPDigest {
		t.Helper()
		all := append([]Header{platform(2, platformSNP), area(0x1000, 1)}, headers...)
		off := dataAt(all...)
		for i, h := range all {
			if h.Type == TypePageData || h.Type == TypeVPContext { // all have the same data
				all[i].Data = slices.Clone(h.Data)
				le.PutUint32(all[i].Data[12:], off)
			}
		}
		f, err := Parse(file(make([]byte, sev.PageSize), all...))
		if err != nil {
			t.Fatal(err)
		}
		d, err := f.SNPDigest(opt)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	vcpu, in := context(sev.VMSAAddress, 2, 1), insert(0x9000, 2, 1)
	first := made(Options{}, in, normal(0x1000), normal(0x2000), normal(0x3000), vcpu)
	for name, headers := range map[string][]Header{
		"inside the run":   {normal(0x1000), normal(0x2000), in, normal(0x3000), vcpu},
		"behind the run":   {normal(0x1000), normal(0x2000), normal(0x3000), in, vcpu},
		"behind the CPU":   {normal(0x1000), normal(0x2000), normal(0x3000), vcpu, in},
		"the CPU in front": {vcpu, in, normal(0x1000), normal(0x2000), normal(0x3000)},
	} {
		if got := made(Options{}, headers...); got != first {
			t.Errorf("%s: %v, want that of an insert in front", name, got)
		}
	}
	if got := made(Options{}, normal(0x1000), normal(0x3000), in, normal(0x4000), vcpu); got == first {
		t.Error("a run that is broken has the digest of one that is not")
	}
	if a, b := made(Options{FileOrder: true}, in, normal(0x1000), vcpu),
		made(Options{FileOrder: true}, normal(0x1000), in, vcpu); a == b {
		t.Error("in the file's order the insert's place does not count")
	}
	f, err := Parse(
		file(
			make([]byte, sev.PageSize),
			platform(2, platformSNP),
			normal(0x1000),
			Header{0x3ff, make([]byte, 8)},
			vcpu,
		),
	)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := f.SNPDigest(Options{}); !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), "0x3ff") {
		t.Errorf("an unknown header: %v, %v, want it refused by its type", d, err)
	}
}

func TestDigestRefused(t *testing.T) {
	snp, normal, vcpu := platform(2, platformSNP), page(0x1000, 2, 24, 0, dataNormal), context(sev.VMSAAddress, 2, 24)
	short := func(h Header, n int) Header { h.Data = h.Data[:n]; return h }
	for name, c := range map[string]struct {
		headers []Header
		want    error
		say     string
	}{
		"no platform":      {[]Header{normal, vcpu}, ErrPlatform, "does not support SEV-SNP"},
		"another platform": {[]Header{platform(2, 1), normal, vcpu}, ErrPlatform, "does not support SEV-SNP"},
		"no pages":         {[]Header{snp, vcpu}, ErrPlatform, "0 pages and 1 CPU contexts"},
		"no contexts":      {[]Header{snp, normal}, ErrPlatform, "1 pages and 0 CPU contexts"},
		"others' pages":    {[]Header{snp, page(0x1000, 4, 24, 0, 0), vcpu}, ErrPlatform, "0 pages"},
		"memory behind it": {[]Header{snp, vcpu, normal}, ErrPlatform, "memory behind a CPU context"},
		"context elsewhere": {
			[]Header{snp, normal, context(0x1000, 2, 24)},
			ErrPlatform,
			"a CPU context at 0x1000",
		},
		"context's data": {
			[]Header{snp, normal, context(sev.VMSAAddress, 2, 1<<30)},
			ErrFormat,
			"leaves the file",
		},
		"page's data":         {[]Header{snp, page(0x1000, 2, 1<<30, 0, 0), vcpu}, ErrFormat, "leaves the file"},
		"page's type":         {[]Header{snp, page(0x1000, 2, 24, 0, 4), vcpu}, ErrFormat, "page data of type 4"},
		"area of half a page": {[]Header{snp, area(0x800, 1)}, ErrFormat, "parameter area of 2048 bytes"},
		"area that is huge":   {[]Header{snp, area(1<<40, 1)}, ErrFormat, "parameter area of"},
		"no such area":        {[]Header{snp, area(0x1000, 1), insert(0, 2, 2)}, ErrFormat, "no parameter area 2"},
		"page header":         {[]Header{snp, short(normal, 23)}, ErrFormat, "23 bytes, must be 24"},
		"context header":      {[]Header{snp, short(vcpu, 17)}, ErrFormat, "17 bytes, must be 18"},
		"area header":         {[]Header{snp, short(area(0, 1), 15)}, ErrFormat, "15 bytes, must be 16"},
		"insert header":       {[]Header{snp, short(insert(0, 2, 1), 15)}, ErrFormat, "15 bytes, must be 16"},
		"insert behind it":    {[]Header{snp, area(0x1000, 1), vcpu, insert(0, 2, 1)}, ErrPlatform, "memory behind"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := Parse(file(make([]byte, sev.PageSize), c.headers...))
			if err != nil {
				t.Fatal(err)
			}
			d, err := f.SNPDigest(Options{FileOrder: strings.HasSuffix(name, "behind it")})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.say) || d != (sev.SNPDigest{}) {
				t.Errorf("digest %v, %v, want none and %v with %q", d, err, c.want, c.say)
			}
		})
	}
	l := loader{pages: maxPages - 1}
	if err := l.extend(sev.PageZero, 0, [48]byte{}); err != nil {
		t.Errorf("page %d: %v, want nil", maxPages, err)
	}
	if err := l.extend(sev.PageZero, 0, [48]byte{}); !errors.Is(err, ErrFormat) {
		t.Errorf("page %d: %v, want ErrFormat", maxPages+1, err)
	}
	f := &File{Bytes: []byte("abc")}
	if b, err := f.data(2, 2); err != nil || string(b) != "c\x00" {
		t.Errorf("data %q, %v, want the last byte and a zero", b, err)
	}
	if _, err := f.data(3, 1); !errors.Is(err, ErrFormat) {
		t.Errorf("data behind the file: %v, want ErrFormat", err)
	}
}

func TestParseRefused(t *testing.T) {
	good := file(nil, platform(2, platformSNP))
	vars := uint32(len(good) - 24)
	edit := func(change func(b []byte)) []byte { b := bytes.Clone(good); change(b); return b }
	for name, c := range map[string]struct {
		file []byte
		say  string
	}{
		"nothing":           {nil, "without its signature"},
		"signature":         {edit(func(b []byte) { b[0] = 'x' }), "without its signature"},
		"23 bytes":          {good[:23], "without its signature"},
		"version 0":         {edit(func(b []byte) { b[4] = 0 }), "version 0, must be 1 or 2"},
		"version 3":         {edit(func(b []byte) { b[4] = 3 }), "version 3, must be 1 or 2"},
		"longer":            {append(bytes.Clone(good), 0), "its header says"},
		"shorter":           {good[:len(good)-1], "its header says"},
		"headers too early": {edit(func(b []byte) { b[8] = 23 }), "variable headers at 0x17"},
		"headers too long":  {edit(func(b []byte) { b[12]++ }), "variable headers at 0x18"},
		"checksum":          {edit(func(b []byte) { b[20] ^= 1 }), "checksum"},
		"data":              {edit(func(b []byte) { b[40] ^= 1 }), "checksum"},
		"half a header": {
			seal(1, 24, append(bytes.Clone(good), 1, 2, 3, 4, 5, 6, 7), vars+7),
			"7 bytes behind the last",
		},
		"header too long": {seal(1, 24, edit(func(b []byte) { b[28]++ }), vars), "leaves the headers"},
		"short platform": {
			file(nil, Header{TypeSupportedPlatform, make([]byte, 15)}),
			"a supported platform of 15 bytes",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if f, err := Parse(c.file); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.say) {
				t.Errorf("%+v, %v, want ErrFormat with %q", f, err, c.say)
			}
		})
	}
	if !Is([]byte(magic)) || Is([]byte(magic[:3])) || Is([]byte("IGVX")) {
		t.Error("Is takes other than four bytes of signature")
	}
	if f, err := Parse(file(nil)); err != nil || len(f.Headers) != 0 {
		t.Errorf("a fixed header alone: %+v, %v, want no headers", f, err)
	}
	// Version 2 has a longer fixed header.
	v2 := seal(2, fixedSizeV2, append(make([]byte, fixedSizeV2), good[24:]...), vars)
	if f, err := Parse(v2); err != nil || len(f.Platforms) != 1 {
		t.Errorf("version 2: %+v, %v, want one platform", f, err)
	}
	if _, err := Parse(seal(2, 24, bytes.Clone(good), vars)); !errors.Is(err, ErrFormat) {
		t.Errorf("version 2 with the header of version 1: %v, want ErrFormat", err)
	}
	const many = 8 * (maxHeaders + 1) // headers of type 0 without data
	if _, err := Parse(seal(1, 24, make([]byte, 24+many), many)); !errors.Is(err, ErrFormat) {
		t.Errorf("%d headers: %v, want ErrFormat", maxHeaders+1, err)
	}
}

func TestTypeNames(t *testing.T) {
	for typ, want := range map[HeaderType]string{TypePageData: "page data", 0x30c: "memory map", 0x999: "type 0x999"} {
		if got := typ.String(); got != want {
			t.Errorf("header type %#x prints as %q, want %q", uint32(typ), got, want)
		}
	}
}
