{{- /* What the server is told, and what it reads and writes. */}}
{{- define "steersman.databaseEnv" -}}
- name: STEERSMAN_HOME
  value: /var/lib/steersman
{{- if eq .Values.database.type "postgresql" }}
- name: STEERSMAN_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "steersman.databaseSecret" . }}
      key: {{ ternary "url" .Values.database.secretKey (empty .Values.database.existingSecret) }}
{{- end }}
{{- end }}

{{- /* `root` and `role`, as a pod has them. A worker is told of no database: its leader alone opens it. */}}
{{- define "steersman.env" -}}
- name: HOME
  value: /home/steersman
# torch asks for the user's name, and a user that the image does not know has none.
- name: LOGNAME
  value: steersman
- name: TMPDIR
  value: /tmp
- name: HF_HOME
  value: /models/huggingface
- name: VLLM_CACHE_ROOT
  value: /models/vllm
# Half of the series on /metrics are otherwise times at which the others were made.
- name: PROMETHEUS_DISABLE_CREATED_SERIES
  value: "true"
- name: STEERSMAN_LOG_FORMAT
  value: {{ .root.Values.server.logFormat }}
{{- if eq .role "worker" }}
- name: STEERSMAN_HOME
  value: /var/lib/steersman
{{- else }}
{{ include "steersman.databaseEnv" .root }}
{{- end }}
{{- with .root.Values }}
{{- if .monitoring.otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_TRACES_PROTOCOL
  value: {{ .monitoring.otlpProtocol }}
{{- end }}
{{- with .model.hubToken }}
{{- if .existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- if .multinode.enabled }}
- name: VLLM_HOST_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- with .multinode.networkInterface }}
- name: NCCL_SOCKET_IFNAME
  value: {{ . | quote }}
- name: GLOO_SOCKET_IFNAME
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- with .server.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "steersman.args" -}}
- serve
{{- with .root.Values }}
{{- with .model.id }}
- {{ . | quote }}
{{- end }}
{{- with .model.servedName }}
- --served-model-name
- {{ . | quote }}
{{- end }}
- --port
- {{ .server.port | quote }}
- --shutdown-timeout
- {{ .drain.timeoutSeconds | quote }}
- --disable-access-log-for-endpoints
- /health,/readyz,/metrics
{{- if eq (include "steersman.router" $.root) "vllm-router" }}
- --behind-vllm-router
{{- end }}
{{- if eq .accelerator.type "gpu" }}
- --tensor-parallel-size
- {{ .accelerator.count | quote }}
{{- end }}
- --accounts
- {{ .server.accounts | quote }}
- --interactions
- {{ .server.interactions | quote }}
{{- with .server.limits.requestsPerMinute }}
- --requests-per-minute
- {{ int64 . | quote }}
{{- end }}
{{- with .server.limits.tokensPerMinute }}
- --tokens-per-minute
- {{ int64 . | quote }}
{{- end }}
{{- with .server.limits.concurrentRequests }}
- --concurrent-requests
- {{ int64 . | quote }}
{{- end }}
{{- with .server.maxQueue }}
- --max-queue
- {{ int64 . | quote }}
{{- end }}
{{- with .server.maxQueueSeconds }}
- --max-queue-seconds
- {{ . | quote }}
{{- end }}
{{- with .server.behaviors }}
- --behaviors
- {{ join "," . | quote }}
{{- end }}
{{- if .server.redact }}
- --redact
- /etc/steersman/redact.txt
{{- end }}
{{- with .server.allowedMediaDomains }}
- --allowed-media-domains
{{- range . }}
- {{ . | quote }}
{{- end }}
{{- end }}
{{- with .monitoring.otlpEndpoint }}
- --otlp-traces-endpoint
- {{ . | quote }}
{{- end }}
{{- if .multinode.enabled }}
- --pipeline-parallel-size
- {{ .multinode.size | quote }}
- --nnodes
- $(LWS_GROUP_SIZE)
- --node-rank
- {{ ternary "$(LWS_WORKER_INDEX)" "0" (eq $.role "worker") | quote }}
- --master-addr
- $(LWS_LEADER_ADDRESS)
- --distributed-executor-backend
- mp
{{- if eq $.role "worker" }}
- --headless
{{- end }}
{{- end }}
{{- range .server.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "steersman.mounts" -}}
- name: home
  mountPath: /var/lib/steersman
- name: models
  mountPath: /models
- name: user
  mountPath: /home/steersman
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- if .Values.server.redact }}
- name: config
  mountPath: /etc/steersman
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* `role` worker has an empty home: the leader alone opens the database. */}}
{{- define "steersman.volumes" -}}
{{- with .root.Values }}
- name: home
{{- if and .persistence.enabled (ne $.role "worker") }}
  persistentVolumeClaim:
    claimName: {{ .persistence.existingClaim | default (printf "%s-home" (include "steersman.fullname" $.root)) }}
{{- else }}
  emptyDir: {}
{{- end }}
- name: models
{{- if eq .modelCache.type "claim" }}
  persistentVolumeClaim:
    claimName: {{ .modelCache.existingClaim | default (printf "%s-models" (include "steersman.fullname" $.root)) }}
{{- else if eq .modelCache.type "ephemeral" }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .modelCache.storageClass }}
        storageClassName: {{ . | quote }}
        {{- end }}
        resources:
          requests:
            storage: {{ .modelCache.size | quote }}
{{- else }}
  emptyDir:
    sizeLimit: {{ .modelCache.size | quote }}
{{- end }}
- name: user
  emptyDir: {}
- name: tmp
  emptyDir:
    sizeLimit: {{ .tmp.size | quote }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .shm.size | quote }}
{{- if .server.redact }}
- name: config
  configMap:
    name: {{ include "steersman.fullname" $.root }}
{{- end }}
{{- with .extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "steersman.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if eq .Values.accelerator.type "gpu" -}}
{{- $resources = merge $resources (dict "limits" dict "requests" dict) -}}
{{- $_ := set $resources.limits .Values.accelerator.resource (.Values.accelerator.count | toString) -}}
{{- end -}}
{{ toYaml $resources }}
{{- end }}
