package refusal

// Codes about SEV-SNP reports and AMD's certificates.
const (
	ReportSize         Reason = "report-size"
	ReportVersion      Reason = "report-version"
	ReportReserved     Reason = "report-reserved"
	SignatureAlgorithm Reason = "signature-algorithm"
	Signer             Reason = "signer"
	CertProfile        Reason = "cert-profile"
	KeyType            Reason = "key-type"
	ProductUnknown     Reason = "product-unknown"
	ProductMismatch    Reason = "product-mismatch"
	TCBMismatch        Reason = "tcb-mismatch"
	ChipMismatch       Reason = "chip-mismatch"
	TCBInconsistent    Reason = "tcb-inconsistent"
	MigrationAgent     Reason = "migration-agent"
	SMT                Reason = "smt"
	SingleSocket       Reason = "single-socket"
	VLEK               Reason = "vlek"
	Provisional        Reason = "provisional"
	AliasCheck         Reason = "alias-check"
	TCBBelowMinimum    Reason = "tcb-below-minimum"
	FirmwareVersion    Reason = "firmware-version"
	GuestSVN           Reason = "guest-svn"
	Mitigation         Reason = "mitigation"
	VMPL               Reason = "vmpl"
	Measurement        Reason = "measurement"
	HostData           Reason = "host-data"
	IDKey              Reason = "id-key"
	AuthorKey          Reason = "author-key"
	FamilyID           Reason = "family-id"
	ImageID            Reason = "image-id"
	ChipNotAllowed     Reason = "chip-not-allowed"
	GuestPolicy        Reason = "guest-policy"
)

// Codes about both.
const (
	Chain        Reason = "chain"
	CertExpired  Reason = "cert-expired"
	CRLMalformed Reason = "crl-malformed"
	CRLSignature Reason = "crl-signature"
	CRLExpired   Reason = "crl-expired"
	CRLMissing   Reason = "crl-missing"
	Revoked      Reason = "revoked"
	Signature    Reason = "signature"
	Debug        Reason = "debug"
	ReportData   Reason = "report-data"
	EKMissing    Reason = "certificate-missing"
)

// Codes about TDX quotes and Intel's collateral.
const (
	QuoteSize             Reason = "quote-size"
	QuoteVersion          Reason = "quote-version"
	AttestationKeyType    Reason = "attestation-key-type"
	TEEType               Reason = "tee-type"
	QEVendor              Reason = "qe-vendor"
	BodyType              Reason = "body-type"
	CertificationData     Reason = "certification-data"
	PCKExtension          Reason = "pck-extension"
	CollateralMissing     Reason = "collateral-missing"
	QEReportSignature     Reason = "qe-report-signature"
	AttestationKeyBinding Reason = "attestation-key-binding"
	TCBInfoChain          Reason = "tcb-info-chain"
	TCBInfoSignature      Reason = "tcb-info-signature"
	QEIdentitySignature   Reason = "qe-identity-signature"
	TCBInfoVersion        Reason = "tcb-info-version"
	QEIdentityVersion     Reason = "qe-identity-version"
	TCBInfoExpired        Reason = "tcb-info-expired"
	QEIdentityExpired     Reason = "qe-identity-expired"
	TCBEvaluationNumber   Reason = "tcb-evaluation-number"
	TCBInfoPlatform       Reason = "tcb-info-platform"
	TDXModule             Reason = "tdx-module"
	QEIdentity            Reason = "qe-identity"
	TCBNotSupported       Reason = "tcb-not-supported"
	TCBStatus             Reason = "tcb-status"
	Advisory              Reason = "advisory"
	Attributes            Reason = "attributes"
	SEPTVEDisable         Reason = "sept-ve-disable"
	ServiceTD             Reason = "service-td"
	MRTD                  Reason = "mrtd"
	MRConfigID            Reason = "mrconfigid"
	MROwner               Reason = "mrowner"
	MROwnerConfig         Reason = "mrownerconfig"
	MRSEAM                Reason = "mrseam"
	XFAM                  Reason = "xfam"
	RTMR                  Reason = "rtmr"
	FMSPCNotAllowed       Reason = "fmspc-not-allowed"
	PlatformNotAllowed    Reason = "platform-not-allowed"
	CCELMalformed         Reason = "ccel-malformed"
	CCELMismatch          Reason = "ccel-mismatch"
	NoPolicy              Reason = "no-policy"
	EventLogMissing       Reason = "event-log-missing"
)

// Codes about quotes of a TPM.
const (
	TPMKey       Reason = "tpm-key"
	TPMQuote     Reason = "tpm-quote"
	TPMRegisters Reason = "tpm-registers"
)

type meaning struct{ text, fix string }

// Remedies that several codes share.
const (
	another   = "compare the file with what the guest sent: it was damaged or forged"
	fresh     = "fetch newer ones: latchkey bundle fetch BUNDLE"
	hostFixes = "the host updates its firmware, or you demand less"
	relaunch  = "the guest must be launched anew, with what you expect"
)

var meanings = map[Reason]meaning{
	ReportSize: {
		"an SEV-SNP report has 1184 bytes",
		"give the report alone, as the guest's kernel hands it out",
	},
	ReportVersion:      {"the report's version is none of 2 to 5", "a newer latchkey may know it"},
	ReportReserved:     {"a field of the report that has a fixed value has another", another},
	SignatureAlgorithm: {"the report is not signed with ECDSA P-384 and SHA-384", another},
	Signer: {
		"the report is signed with neither a VCEK nor a VLEK",
		"the host must let the platform sign reports: firmware can be told not to",
	},
	CertProfile: {
		"the endorsement certificate is not as AMD's specification says",
		"fetch it from AMD: latchkey bundle urls prints the address",
	},
	KeyType: {
		"the certificate is of another kind than the key that signed the report",
		"give the VLEK where a VLEK signed, and the VCEK where a VCEK did",
	},
	ProductUnknown: {"the processor belongs to no product line that is known", "a newer latchkey may know it"},
	ProductMismatch: {
		"report and certificate are of different product lines",
		"give the certificate of this processor",
	},
	TCBMismatch: {
		"the certificate is for another TCB than the report names",
		"fetch the one for this report: latchkey bundle urls --report FILE",
	},
	ChipMismatch: {
		"the certificate is of another chip",
		"fetch the one for this report: latchkey bundle urls --report FILE",
	},
	TCBInconsistent: {"the reported or committed TCB is above the current one", another},
	MigrationAgent:  {"the guest's policy lets a migration agent move it", relaunch},
	SMT: {
		"the guest's policy allows simultaneous multithreading",
		`allow it (policy = ["smt"]), or launch the guest without it on a host that has it switched off`,
	},
	SingleSocket: {"the guest's policy does not demand a single socket", relaunch},
	VLEK: {
		"the report is signed with a VLEK, which the provider holds and which names no chip",
		"allow that (vlek = true), if you trust the provider with it",
	},
	Provisional: {
		"the host's firmware is not committed, so that the host may roll it back",
		"the host commits its firmware (snphost commit), or you allow it (provisional = true)",
	},
	AliasCheck: {
		"the platform has not completed the check for memory aliases",
		"the host updates its firmware, or you no longer demand the check (alias-check = false)",
	},
	TCBBelowMinimum: {"a part of the platform's firmware is older than you demand", hostFixes},
	FirmwareVersion: {"the platform's SEV firmware is older than you demand", hostFixes},
	GuestSVN:        {"the guest's security version is below what you demand", relaunch},
	Mitigation:      {"a mitigation that you demand is not in force", hostFixes},
	VMPL: {
		"the report was asked for at another privilege level",
		"the guest asks at the level that you expect; a report that the host asked for proves nothing",
	},
	TPMKey: {
		"no attestation key that you know has signed the quote",
		"latchkey tpm credential makes it known; vmlatch tpm reset changes it",
	},
	TPMQuote: {"the TPM's quote is not what was asked for", another},
	TPMRegisters: {
		"the TPM's registers differ: something else was booted",
		"latchkey pcrs --log says which input changed",
	},
	Measurement: {
		"the launch digest differs: something else was loaded into the guest",
		"latchkey explain --evidence FILE says what differs",
	},
	HostData:  {"the host data differ", relaunch},
	IDKey:     {"the ID key is another than yours, or none was used", relaunch},
	AuthorKey: {"the author key is another than yours, or none was used", relaunch},
	FamilyID:  {"the family ID differs", relaunch},
	ImageID:   {"the image ID differs", relaunch},
	ChipNotAllowed: {
		"the chip is not on your list, or the report does not name it",
		"add it to chips if it is one of yours; a masked chip or a VLEK matches no list",
	},
	GuestPolicy: {"the guest's policy allows more than yours", relaunch},

	Chain: {
		"no chain of signatures leads to a root that is trusted",
		"it is forged, or of a test platform, whose root must be named (--trust-root)",
	},
	CertExpired: {
		"a certificate is not valid at the time of judgement",
		"fetch a newer one, or judge for another time with --as-of",
	},
	CRLMalformed: {"a revocation list cannot be read", fresh},
	CRLSignature: {
		"a revocation list is not signed by the authority that it speaks for",
		"give the list of the same vendor and product line",
	},
	CRLExpired: {"a revocation list is not valid at the time of judgement", fresh},
	CRLMissing: {"there is no revocation list", "fetch one: latchkey bundle fetch BUNDLE --report FILE"},
	Revoked: {
		"the vendor has revoked a certificate of the chain",
		"nothing of this platform is believed any more",
	},
	Signature: {"the signature is wrong: the evidence was changed after it was signed", another},
	Debug:     {"the host may read and write the guest's memory (debugging is on)", relaunch},
	ReportData: {
		"the report data differ: the evidence was made for another purpose",
		"give the 64 bytes that this guest was asked to show",
	},
	EKMissing: {
		"there is no endorsement certificate for this chip and TCB",
		"latchkey bundle urls --report FILE prints where AMD has it (version 2: with --product)",
	},

	QuoteSize: {
		"the quote, or a length in it, is out of bounds",
		"give it whole and alone, as the guest's kernel hands it out",
	},
	QuoteVersion:       {"the quote's version is neither 4 nor 5", "a newer latchkey may know it"},
	AttestationKeyType: {"the attestation key is not ECDSA P-256", another},
	TEEType:            {"this is not a quote of a trust domain", "SGX quotes are not read here"},
	QEVendor:           {"the quoting enclave is not Intel's", another},
	BodyType:           {"the type or the size of the quote's body is not known", "a newer latchkey may know it"},
	CertificationData: {
		"the quote brings no chain of PCK certificates",
		"the host's quoting service must put it there (type 5)",
	},
	PCKExtension: {"the PCK certificate does not name its platform", another},
	CollateralMissing: {
		"there is no collateral, without which the platform's state is not known",
		"fetch it: latchkey bundle fetch BUNDLE --quote FILE",
	},
	QEReportSignature: {"the platform's key did not sign the report of the quoting enclave", another},
	AttestationKeyBinding: {
		"the quoting enclave does not vouch for the attestation key", another,
	},
	TCBInfoChain:     {"the TCB info is not signed by Intel's TCB signing key", fresh},
	TCBInfoSignature: {"the TCB info was changed after it was signed", fresh},
	QEIdentitySignature: {
		"the identity of the quoting enclave was changed after it was signed, or by another key",
		fresh,
	},
	TCBInfoVersion:      {"the TCB info is not of TDX, version 3", fresh},
	QEIdentityVersion:   {"the identity is not that of the TD quoting enclave, version 2", fresh},
	TCBInfoExpired:      {"the TCB info is not valid at the time of judgement", fresh},
	QEIdentityExpired:   {"the identity of the quoting enclave is not valid at the time of judgement", fresh},
	TCBEvaluationNumber: {"the collateral is of an older TCB evaluation than you demand", fresh},
	TCBInfoPlatform: {
		"the TCB info is of another family of platforms",
		"fetch that of this platform: latchkey bundle urls --quote FILE",
	},
	TDXModule: {"the TDX module is of another signer, or unknown", another},
	QEIdentity: {
		"the quoting enclave is another than Intel's",
		"nothing of this quote is believed: any enclave could have made it",
	},
	TCBNotSupported: {"the platform is older than every state that Intel knows", hostFixes},
	TCBStatus:       {"the platform's state is not one that you accept", hostFixes + " (accept-tcb)"},
	Advisory:        {"an advisory that you reject is open on the platform", hostFixes},
	Attributes:      {"the trust domain has attributes that you do not allow", relaunch},
	SEPTVEDisable: {
		"the host may inject exceptions through missing pages (SEPT_VE_DISABLE is off)", relaunch,
	},
	ServiceTD: {"a service TD is bound to the trust domain, which may move it", relaunch},
	MRTD: {
		"the firmware's measurement differs (MRTD)",
		"latchkey explain --evidence FILE says what differs",
	},
	MRConfigID:    {"MRCONFIGID differs", relaunch},
	MROwner:       {"MROWNER differs", relaunch},
	MROwnerConfig: {"MROWNERCONFIG differs", relaunch},
	MRSEAM:        {"the TDX module is another than you demand (MRSEAM)", hostFixes},
	XFAM:          {"the extended features differ (XFAM)", relaunch},
	RTMR: {
		"a run-time measurement differs: the guest booted something else",
		"give the event log with --event-log: it says what",
	},
	FMSPCNotAllowed:    {"the platform's family is not on your list", "add it to fmspc if it is one of yours"},
	PlatformNotAllowed: {"the platform is not on your list", "add it to chips if it is one of yours"},
	CCELMalformed:      {"the event log cannot be read", "give it as it lies in /sys/firmware/acpi/tables/data/CCEL"},
	NoPolicy: {
		"the policy says nothing of this technology, so its guests are refused",
		"give the policy a table for it: latchkey help appliance-policy",
	},
	EventLogMissing: {
		"the policy's profile of RTMR0 needs the boot's event log, and there is none: nothing was compared",
		"give it with --event-log (in the guest it is /sys/firmware/acpi/tables/data/CCEL)",
	},
	CCELMismatch: {"the event log is not that of the quote", "take both from the same boot"},
}
