-- stg_flights has a row for each row of the source: nothing is filtered away on the way to the marts.
with counts as (

    select
        (select count(*) from {{ source('staging', 'flights') }}) as loaded,
        (select count(*) from {{ ref('stg_flights') }}) as staged

)

select *
from counts
where loaded <> staged or loaded = 0
