{{- define "sidstream.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "sidstream.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* What a selector never changes. */}}
{{- define "sidstream.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sidstream.labels" -}}
{{ include "sidstream.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Refuses what would be overridden in silence. */}}
{{- define "sidstream.check" -}}
{{- if not .Values.kafka.bootstrapServers }}{{ fail "kafka.bootstrapServers must be set: --set kafka.bootstrapServers=host:9092" }}{{ end }}
{{- if and .Values.bundle.existingClaim .Values.bundle.image }}{{ fail "bundle.existingClaim and bundle.image: set one of the two" }}{{ end }}
{{- if not (or .Values.bundle.existingClaim .Values.bundle.image) }}{{ fail "the bundle is missing: set bundle.existingClaim (a volume) or bundle.image (an image that has it in bundle.imagePath)" }}{{ end }}
{{- range $name := list "bundle" "bundles" "index" "indexes" "pipeline" "kafka" "metrics" }}
{{- if hasKey $.Values.settings $name }}{{ fail (printf "settings.%s is decided by the chart: leave it out of settings" $name) }}{{ end }}
{{- end }}
{{- range $section, $key := dict "indexer" "partitions" "retriever" "shards" }}
{{- if hasKey (get $.Values.settings $section | default dict) $key }}{{ fail (printf "settings.%s.%s comes from indexHosts: set it there" $section $key) }}{{ end }}
{{- end }}
{{- if hasKey (get .Values.settings "tracing" | default dict) "endpoint" }}{{ fail "settings.tracing.endpoint: set it as tracing.endpoint, so that the network policies let spans through" }}{{ end }}
{{- range $section := list "assigner" "retriever" }}
{{- if hasKey (get $.Values.settings $section | default dict) "instance" }}{{ fail (printf "settings.%s.instance is each pod's own name: leave it out of settings" $section) }}{{ end }}
{{- end }}
{{- $names := list }}
{{- range $host := .Values.indexHosts }}
{{- if has $host.name $names }}{{ fail (printf "indexHosts: %s is there twice" $host.name) }}{{ end }}
{{- $names = append $names $host.name }}
{{- if and (gt (len $.Values.indexHosts) 1) (not $host.partitions) }}{{ fail (printf "indexHosts: %s has no partitions, and with several shards each needs its own" $host.name) }}{{ end }}
{{- end }}
{{- if gt (len .Values.indexHosts) 1 }}
{{- $count := int (get (get .Values.settings "topics" | default dict) "partitions" | default 4) }}
{{- range $number := until $count }}
{{- $holders := list }}
{{- range $host := $.Values.indexHosts }}{{ if has (toString $number) (include "sidstream.numbers" $host.partitions | fromJsonArray | toStrings) }}{{ $holders = append $holders $host.name }}{{ end }}{{ end }}
{{- if not $holders }}{{ fail (printf "indexHosts: no shard has partition %d of settings.topics.partitions (%d)" $number $count) }}{{ end }}
{{- if gt (len $holders) 1 }}{{ fail (printf "indexHosts: partition %d is in several shards: %s" $number (join ", " $holders)) }}{{ end }}
{{- end }}
{{- end }}
{{- if and .Values.gateway.enabled (not .Values.gateway.clientsSecret) }}{{ fail "gateway.clientsSecret is missing: who may ask (sidstream gateway --new-key NAME, docs/gateway.md)" }}{{ end }}
{{- if and .Values.candidates (not .Values.bundle.storeClaim) }}{{ fail "candidates need bundle.storeClaim: their bundles lie in the store" }}{{ end }}
{{- $grace := get .Values.settings "shutdown_seconds" | default 20 }}
{{- if le (float64 .Values.terminationGracePeriodSeconds) (float64 $grace) }}{{ fail (printf "terminationGracePeriodSeconds must be more than settings.shutdown_seconds (%v)" $grace) }}{{ end }}
{{- end }}

{{/* Consumer groups as Settings.in_cluster names them. */}}
{{- define "sidstream.prefix" -}}
{{ get (get .Values.settings "topics" | default dict) "prefix" | default "" }}
{{- end }}

{{- define "sidstream.topic" -}}
{{- $topics := get .root.Values.settings "topics" | default dict }}
{{- get $topics (replace "-" "_" .topic) | default (printf "%s%s" (include "sidstream.prefix" .root) .topic) }}
{{- end }}

{{- define "sidstream.environment" -}}
- { name: SIDSTREAM_CONFIG, value: /etc/sidstream/sidstream.toml }
- { name: SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS, value: {{ .Values.kafka.bootstrapServers | quote }} }
{{- with .Values.kafka.securitySecret }}
- { name: SIDSTREAM_KAFKA__SECURITY, valueFrom: { secretKeyRef: { name: {{ . }}, key: security } } }
{{- end }}
{{- with .Values.kafka.oauthTokenProvider }}
- { name: SIDSTREAM_KAFKA__OAUTH_TOKEN_PROVIDER, value: {{ . | quote }} }
{{- end }}
- { name: SIDSTREAM_BUNDLE, value: /bundle }
- { name: SIDSTREAM_BUNDLES, value: /var/lib/sidstream/bundles }
- { name: SIDSTREAM_INDEX, value: /var/lib/sidstream/index }
- { name: SIDSTREAM_LOGGING__FORMAT, value: json }
- { name: SIDSTREAM_METRICS__HOST, value: 0.0.0.0 }
{{- with .Values.tracing.endpoint }}
- { name: SIDSTREAM_TRACING__ENDPOINT, value: {{ . | quote }} }
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "sidstream.container" -}}
image: {{ include "sidstream.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{/* Alive: starting anew helps; ready: what was there at the start is read. Argument: the metrics port's name. */}}
{{- define "sidstream.probes" -}}
startupProbe: { httpGet: { path: /live, port: {{ . }} }, periodSeconds: 5, failureThreshold: 60 }
livenessProbe: { httpGet: { path: /live, port: {{ . }} }, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 3 }
readinessProbe: { httpGet: { path: /ready, port: {{ . }} }, periodSeconds: 5, timeoutSeconds: 5, failureThreshold: 2 }
{{- end }}

{{- define "sidstream.mounts" -}}
- { name: settings, mountPath: /etc/sidstream/sidstream.toml, subPath: sidstream.toml, readOnly: true }
- name: bundle
  mountPath: /bundle
  readOnly: true
  {{- with .Values.bundle.subPath }}
  subPath: {{ . }}
  {{- end }}
- { name: temporary, mountPath: /tmp }
{{- if .Values.bundle.storeClaim }}
- { name: bundles, mountPath: /var/lib/sidstream/bundles }
{{- end }}
{{- if .Values.kafka.filesSecret }}
- { name: kafka-files, mountPath: /etc/sidstream/kafka, readOnly: true }
{{- end }}
{{- end }}

{{- define "sidstream.volumes" -}}
- name: settings
  configMap: { name: {{ include "sidstream.name" . }} }
- name: bundle
  {{- if .Values.bundle.existingClaim }}
  persistentVolumeClaim: { claimName: {{ .Values.bundle.existingClaim }}, readOnly: true }
  {{- else }}
  emptyDir: {}
  {{- end }}
- name: temporary
  emptyDir: {}
{{- with .Values.bundle.storeClaim }}
- name: bundles
  persistentVolumeClaim: { claimName: {{ . }} }
{{- end }}
{{- with .Values.kafka.filesSecret }}
- name: kafka-files
  secret: { secretName: {{ . }}, defaultMode: 0440 }
{{- end }}
{{- end }}

{{/* Of every pod of the release. */}}
{{- define "sidstream.pod" -}}
serviceAccountName: {{ .Values.serviceAccount.name | default (include "sidstream.name" .) }}
terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
{{ include "sidstream.anyPod" . }}
{{- end }}

{{/* Of the job before the release, too. */}}
{{- define "sidstream.anyPod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "sidstream.bundleCopier" -}}
- name: bundle
  image: {{ .Values.bundle.image }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [cp, -R, {{ printf "%s/." .Values.bundle.imagePath }}, /copied/{{ .Values.bundle.subPath }}]
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: { drop: [ALL] }
  resources: { requests: { cpu: 100m, memory: 64Mi }, limits: { memory: 256Mi } }
  volumeMounts:
    - { name: bundle, mountPath: /copied }
{{- end }}

{{- define "sidstream.podLabels" -}}
{{ include "sidstream.labels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- with .root.Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Pods start anew when the settings change. */}}
{{- define "sidstream.podAnnotations" -}}
checksum/settings: {{ include "sidstream.toml" . | sha256sum }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "sidstream.toml" -}}
{{- $settings := deepCopy .Values.settings }}
{{- if gt (len .Values.indexHosts) 1 }}
{{- $_ := set $settings "retriever" (merge (dict "shards" (len .Values.indexHosts)) (get $settings "retriever" | default dict)) }}
{{- end }}
{{- toToml $settings }}
{{- end }}

{{- define "sidstream.indexComponents" -}}
{{- $names := list }}
{{- range .Values.indexHosts }}{{ $names = append $names (printf "index-%s" .name) }}{{ end }}
{{- toJson $names }}
{{- end }}

{{/* The consumer group of a shard's retrievers, as Settings.retriever_group names it. Arguments: root, partitions. */}}
{{- define "sidstream.retrieverGroup" -}}
{{- $group := get (get .root.Values.settings "retriever" | default dict) "group" | default "sidstream-retriever" }}
{{- include "sidstream.prefix" .root }}{{ $group }}{{ with .partitions }}-partitions-{{ include "sidstream.partitions" . | replace "," "_" }}{{ end }}
{{- end }}

{{/* Names of the ports that have metrics: an index host has one of each process. */}}
{{- define "sidstream.metricsPorts" -}}
{{- $names := list "metrics" }}
{{- range $number := until (int .Values.retrievers) }}{{ $names = append $names (printf "metrics-r%d" $number) }}{{ end }}
{{- range $number, $_ := .Values.candidates }}{{ $names = append $names (printf "metrics-c%d" (add1 $number)) }}{{ end }}
{{- if .Values.gateway.enabled }}{{ $names = append $names "metrics-g" }}{{ end }}
{{- toJson $names }}
{{- end }}

{{/* Numbers of partitions out of 0-3,6; a JSON array. */}}
{{- define "sidstream.numbers" -}}
{{- $numbers := list }}
{{- range $part := splitList "," . }}
{{- $ends := splitList "-" $part }}
{{- range $number := untilStep (int (first $ends)) (int (add1 (int (last $ends)))) 1 }}{{ $numbers = append $numbers $number }}{{ end }}
{{- end }}
{{- toJson (uniq $numbers) }}
{{- end }}

{{/* Partitions as sidstream writes them, in names of consumer groups too: in order, neighbours as 2-3. */}}
{{- define "sidstream.partitions" -}}
{{- if . }}
{{- $numbers := list }}
{{- range include "sidstream.numbers" . | fromJsonArray }}{{ $numbers = append $numbers (int .) }}{{ end }}
{{- $parts := list }}
{{- range $number := until 1025 }}
{{- if and (has $number $numbers) (not (has (int (sub $number 1)) $numbers)) }}
{{- $last := $number }}
{{- range $next := untilStep $number 1025 1 }}{{ if and (eq $next (int (add1 $last))) (has $next $numbers) }}{{ $last = $next }}{{ end }}{{ end }}
{{- $parts = append $parts (ternary (toString $number) (printf "%d-%d" $number $last) (eq $number $last)) }}
{{- end }}
{{- end }}
{{- join "," $parts }}
{{- end }}
{{- end }}
